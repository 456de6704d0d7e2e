//! What several commands show alike: times, sizes, yes and no.

use blockyard_rados::encoding::Utime;

const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// A time as ctime(3) writes it, in UTC.
pub(super) fn time(time: Utime) -> String {
    let seconds = u64::from(time.seconds);
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let weekday = usize::try_from(days % 7).ok().and_then(|day| DAYS.get(day));
    let month = usize::try_from(month).ok().and_then(|month| MONTHS.get(month));
    let (weekday, month) = (weekday.unwrap_or(&""), month.unwrap_or(&""));
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{weekday} {month} {day:>2} {hour:02}:{minute:02}:{second:02} {year}")
}

/// The year, the month from 0 and the day from 1 of so many days since 1970.
fn date(mut days: u64) -> (u64, u64, u64) {
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    loop {
        let length = if is_leap(year) { 366 } else { 365 };
        if days < length {
            break;
        }
        days -= length;
        year += 1;
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    for length in lengths {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

/// Yes and no, as `rbd` writes them in JSON.
pub(super) const fn truth(yes: bool) -> &'static str {
    if yes { "true" } else { "false" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_ctime() {
        let at = |seconds| time(Utime { seconds, nanoseconds: 0 });
        assert_eq!(at(0), "Thu Jan  1 00:00:00 1970");
        assert_eq!(at(951_782_400), "Tue Feb 29 00:00:00 2000");
        assert_eq!(at(1_796_031_393), "Mon Nov 30 09:36:33 2026");
        assert_eq!(at(u32::MAX), "Sun Feb  7 06:28:15 2106");
    }
}
