// Pairs of elements of the cache in f32, two words each.

fn pair_at(index: u32) -> vec2<f32> {
    return vec2<f32>(bitcast<f32>(cache[2u * index]), bitcast<f32>(cache[2u * index + 1u]));
}
