//! `strftime_now`: the time in UTC, as Python's `strftime` of a time without a zone writes it in
//! the C locale.

use std::fmt::Write as _;

use super::fault::{Fault, Result};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

/// A point in time, split into its fields.
struct Moment {
    /// Since 1970.
    seconds: i64,
    year: i64,
    /// From 1.
    month: i64,
    day: i64,
    /// From 1.
    day_of_year: i64,
    /// From Sunday, which is 0.
    weekday: i64,
    hour: i64,
    minute: i64,
    second: i64,
}

impl Moment {
    /// `seconds` since 1970, in the Gregorian calendar.
    fn new(seconds: i64) -> Self {
        let days = seconds.div_euclid(86_400).clamp(-1 << 40, 1 << 40);
        let (year, month, day) = civil_date(days);
        let second_of_day = seconds.rem_euclid(86_400);
        Self {
            seconds,
            year,
            month,
            day,
            day_of_year: days - days_before(year) + 1,
            weekday: (days + 4).rem_euclid(7),
            hour: second_of_day / 3600,
            minute: second_of_day / 60 % 60,
            second: second_of_day % 60,
        }
    }

    /// The year and the week of ISO 8601.
    fn iso_week(&self) -> (i64, i64) {
        let weekday = (self.weekday + 6) % 7; // from Monday
        let week = (self.day_of_year - 1 - weekday + 10) / 7;
        if week < 1 {
            return (self.year - 1, weeks_in(self.year - 1));
        }
        match week > weeks_in(self.year) {
            true => (self.year + 1, 1),
            false => (self.year, week),
        }
    }
}

/// (year, month, day) of a day counted from 1970-01-01.
fn civil_date(days: i64) -> (i64, i64, i64) {
    // Years begin in March here, so that a leap day is a year's last.
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

/// The days from 1970 to the first of `year`.
fn days_before(year: i64) -> i64 {
    let years = year - 1;
    365 * years + years.div_euclid(4) - years.div_euclid(100) + years.div_euclid(400) - 719_162
}

/// Number of ISO 8601 weeks in `year`.
fn weeks_in(year: i64) -> i64 {
    let first = (days_before(year) + 3).rem_euclid(7); // from Monday
    let is_leap = days_before(year + 1) - days_before(year) == 366;
    if first == 3 || first == 2 && is_leap {
        53
    } else {
        52
    }
}

/// The padding of a number.
#[derive(Clone, Copy)]
enum Padding {
    Zeros,
    Spaces,
    None,
}

/// Formats `now`, in seconds since 1970, by `format`.
pub(crate) fn strftime(now: Option<i64>, format: &str) -> Result<String> {
    let now = now.ok_or_else(|| Fault::new("strftime_now: the time was not given"))?;
    let moment = Moment::new(now);
    let mut out = String::new();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let (mut padding, mut is_upper) = (None, false);
        while let Some(flag) = chars.next_if(|c| matches!(c, '-' | '_' | '0' | '^')) {
            match flag {
                '-' => padding = Some(Padding::None),
                '_' => padding = Some(Padding::Spaces),
                '0' => padding = Some(Padding::Zeros),
                _ => is_upper = true,
            }
        }
        let text = match chars.next() {
            None => "%".to_owned(),
            Some(directive) => moment.directive(directive, padding)?,
        };
        out += &if is_upper { text.to_uppercase() } else { text };
    }
    Ok(out)
}

impl Moment {
    fn directive(&self, directive: char, padding: Option<Padding>) -> Result<String> {
        if let Some((number, width, usual)) = self.number(directive) {
            let mut out = String::new();
            let _ = match padding.unwrap_or(usual) {
                Padding::Zeros => write!(out, "{number:0width$}"),
                Padding::Spaces => write!(out, "{number:width$}"),
                Padding::None => write!(out, "{number}"),
            };
            return Ok(out);
        }
        let part = |format: &str| strftime(Some(self.seconds), format);
        let (month, day) = (MONTHS[self.month as usize - 1], DAYS[self.weekday as usize]);
        Ok(match directive {
            'B' => month.to_owned(),
            'b' | 'h' => month[..3].to_owned(),
            'A' => day.to_owned(),
            'a' => day[..3].to_owned(),
            'p' => if self.hour < 12 { "AM" } else { "PM" }.to_owned(),
            'P' => if self.hour < 12 { "am" } else { "pm" }.to_owned(),
            'F' => part("%Y-%m-%d")?,
            'T' | 'X' => part("%H:%M:%S")?,
            'D' | 'x' => part("%m/%d/%y")?,
            'R' => part("%H:%M")?,
            'r' => part("%I:%M:%S %p")?,
            'c' => part("%a %b %e %H:%M:%S %Y")?,
            'f' => "000000".to_owned(),
            // The time has no zone.
            'Z' | 'z' => String::new(),
            's' => self.seconds.to_string(),
            'n' => "\n".to_owned(),
            't' => "\t".to_owned(),
            '%' => "%".to_owned(),
            other => {
                return Err(Fault::new(format!(
                    "strftime_now: %{other} is not supported"
                )));
            }
        })
    }

    /// A numeric directive, with its width and default padding.
    fn number(&self, directive: char) -> Option<(i64, usize, Padding)> {
        let monday_weekday = (self.weekday + 6) % 7;
        let (number, width) = match directive {
            'Y' => return Some((self.year, 4, Padding::None)),
            'e' => return Some((self.day, 2, Padding::Spaces)),
            'k' => return Some((self.hour, 2, Padding::Spaces)),
            'l' => return Some(((self.hour + 11) % 12 + 1, 2, Padding::Spaces)),
            'C' => (self.year.div_euclid(100), 2),
            'y' => (self.year.rem_euclid(100), 2),
            'G' => (self.iso_week().0, 4),
            'g' => (self.iso_week().0.rem_euclid(100), 2),
            'V' => (self.iso_week().1, 2),
            'm' => (self.month, 2),
            'd' => (self.day, 2),
            'j' => (self.day_of_year, 3),
            'H' => (self.hour, 2),
            'I' => ((self.hour + 11) % 12 + 1, 2),
            'M' => (self.minute, 2),
            'S' => (self.second, 2),
            'U' => ((self.day_of_year + 6 - self.weekday) / 7, 2),
            'W' => ((self.day_of_year + 6 - monday_weekday) / 7, 2),
            'u' => (monday_weekday + 1, 1),
            'w' => (self.weekday, 1),
            _ => return None,
        };
        Some((number, width, Padding::Zeros))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(now: i64, format: &str) -> String {
        strftime(Some(now), format).expect("a date")
    }

    #[test]
    fn dates_match_the_gregorian_calendar() {
        assert_eq!(
            at(0, "%A %d %B %Y %H:%M:%S"),
            "Thursday 01 January 1970 00:00:00"
        );
        assert_eq!(
            at(1_709_210_096, "%a %e %b %y %I%p %T"),
            "Thu 29 Feb 24 12PM 12:34:56"
        );
        assert_eq!(at(-1, "%F %T"), "1969-12-31 23:59:59");
        assert!(strftime(None, "%Y").is_err());
    }

    /// Expected values: Python's `strftime` of `datetime.datetime(2027, 1, 3, 9, 5, 7)`.
    #[test]
    fn directives_match_python() {
        let now = 1_798_967_107;
        for (format, text) in [
            ("%j|%-d|%-m|%_d|%C|%G|%g|%V", "003|3|1| 3|20|2026|26|53"),
            ("%c", "Sun Jan  3 09:05:07 2027"),
            (
                "%x %X %D %R %r",
                "01/03/27 09:05:07 01/03/27 09:05 09:05:07 AM",
            ),
            ("%U %W %u %w", "01 00 7 0"),
            (
                "[%Z%z] %f %s %k %l %P %^a %h%n%t%%",
                "[] 000000 1798967107  9  9 am SUN Jan\n\t%",
            ),
        ] {
            assert_eq!(at(now, format), text, "{format}");
        }
        assert_eq!(
            strftime(Some(0), "%Q")
                .expect_err("an unknown directive")
                .to_string(),
            "strftime_now: %Q is not supported"
        );
    }
}
