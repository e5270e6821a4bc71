//! Order statistics of measurements.

/// The median: the middle value, or the mean of the two middle ones. `None` without values.
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    bitnet_kernels::math::median(&mut values.into_iter().collect::<Vec<_>>())
}

/// The 95 % confidence interval of the median, from order statistics, so valid for any
/// distribution. `None` without values.
pub fn median_interval(values: impl IntoIterator<Item = f64>) -> Option<[f64; 2]> {
    let values = sorted(values);
    let (n, middle) = (values.len(), values.len() / 2);
    let half_width = (0.98 * (n as f64).sqrt()).ceil() as usize;
    let last = n.checked_sub(1)?;
    let (low, high) = (middle.saturating_sub(half_width), middle + half_width);
    Some([values[low], values[high.min(last)]])
}

fn sorted(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_median_of_an_even_number_of_values_is_the_mean_of_the_middle_two() {
        assert_eq!(super::median([4.0, 1.0, 3.0]), Some(3.0));
        assert_eq!(super::median([4.0, 1.0, 3.0, 9.0]), Some(3.5));
        assert_eq!(super::median([]), None);
    }

    #[test]
    fn the_interval_comes_from_order_statistics() {
        // Of 100 values, the 41st and the 61st enclose the median with 95 % (binomial
        // distribution).
        let values = (0..100).rev().map(f64::from);
        assert_eq!(super::median_interval(values), Some([40.0, 60.0]));
        assert_eq!(super::median_interval([3.0]), Some([3.0, 3.0]));
        assert_eq!(super::median_interval([]), None);
    }
}
