// Decay and strength of a token in f32, for adapters without f64. The CPU computes them in f64.

fn sigmoid(x: f32) -> f32 {
    return 1.0 / (1.0 + exp_f32(-x));
}

// exp(a · softplus(x)); a is negative.
fn decay_of(a: f32, x: f32) -> f32 {
    // ln(1 + e^x) = max(x, 0) + ln(1 + e^−|x|), without overflow.
    return exp_f32(a * (max(x, 0.0) + ln_one_plus(exp_f32(-abs(x)))));
}

// ln(1 + y) for 0 ≤ y ≤ 1, absolute error about 1e-7: 2 artanh(y / (2 + y)) as a series.
fn ln_one_plus(y: f32) -> f32 {
    let s = y / (2.0 + y);
    let s2 = s * s;
    var sum = 1.0 / 15.0;
    sum = sum * s2 + 1.0 / 13.0;
    sum = sum * s2 + 1.0 / 11.0;
    sum = sum * s2 + 1.0 / 9.0;
    sum = sum * s2 + 1.0 / 7.0;
    sum = sum * s2 + 1.0 / 5.0;
    sum = sum * s2 + 1.0 / 3.0;
    sum = sum * s2 + 1.0;
    return 2.0 * s * sum;
}
