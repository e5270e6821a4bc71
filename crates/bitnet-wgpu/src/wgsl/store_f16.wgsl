// Pairs of elements of the cache in f16, a word each, rounded half to even.

fn store_pair(index: u32, pair: vec2<f32>) {
    cache[index] = pack2x16float(pair);
}
