// Decay and strength of a token in f64, as on the CPU, for adapters that have it. Errors are far below
// an f32, so the rounded results are the CPU's.

// exp(a · softplus(x)); a is negative.
fn decay_of(a: f32, x: f32) -> f32 {
    let wide = f64(x);
    var softplus = wide;
    if x <= 40.0 {
        softplus = ln_f64(1.0lf + exp_f64(wide));
    }
    return f32(exp_f64(f64(a) * softplus));
}

fn sigmoid(x: f32) -> f32 {
    return f32(1.0lf / (1.0lf + exp_f64(-f64(x))));
}

// e^x; 0 below −87, e^88 above 88. e^x = 2^n · e^r with |r| ≤ 0.35, whose series has 14 terms.
fn exp_f64(x: f64) -> f64 {
    let y = f32(x);
    if y < -87.0 {
        return 0.0lf;
    }
    let n = i32(round(min(y, 88.0) * 1.442695));
    let r = select(x, 88.0lf, y > 88.0) - f64(n) * 0.6931471805599453lf;
    var p = 1.0lf;
    for (var k = 14; k > 0; k -= 1) {
        p = p * r / f64(k) + 1.0lf;
    }
    return p * power_of_two(n);
}

// ln y for 1 ≤ y < 2^100: 2 artanh((m − 1) / (m + 1)) + e · ln 2 with y = m · 2^e.
fn ln_f64(y: f64) -> f64 {
    let e = i32(bitcast<u32>(f32(y)) >> 23u) - 127;
    let m = y * power_of_two(-e);
    let s = (m - 1.0lf) / (m + 1.0lf);
    let s2 = s * s;
    var p = 0.0lf;
    for (var k = 16; k >= 0; k -= 1) {
        p = p * s2 + 1.0lf / f64(2 * k + 1);
    }
    return f64(e) * 0.6931471805599453lf + 2.0lf * s * p;
}

fn power_of_two(n: i32) -> f64 {
    return f64(bitcast<f32>(u32(n + 127) << 23u));
}
