// Pairs of elements of the cache in f32, two words each.

fn store_pair(index: u32, pair: vec2<f32>) {
    cache[2u * index] = bitcast<u32>(pair.x);
    cache[2u * index + 1u] = bitcast<u32>(pair.y);
}
