//! Order statistics of measurements.

/// The median: the middle value, or the mean of the two middle ones. `None` without values.
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    bitnet_kernels::math::median(&mut values.into_iter().collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_median_of_an_even_number_of_values_is_the_mean_of_the_middle_two() {
        assert_eq!(super::median([4.0, 1.0, 3.0]), Some(3.0));
        assert_eq!(super::median([4.0, 1.0, 3.0, 9.0]), Some(3.5));
        assert_eq!(super::median([]), None);
    }
}
