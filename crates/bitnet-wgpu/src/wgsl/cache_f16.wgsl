// Pairs of elements of the cache in f16, a word each.

fn pair_at(index: u32) -> vec2<f32> {
    return unpack2x16float(cache[index]);
}
