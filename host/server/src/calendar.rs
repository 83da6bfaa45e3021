//! When jobs run: calendar events. Spec: semantics.md §11.
//!
//! `[WEEKDAYS] [[YYYY-]MM-DD] [HH:MM[:SS]]`, each number a list of values, `a..b` and `a/n`; or a
//! word such as `daily`. Local time, or with ` UTC` at the end that.

use chrono::{Datelike, Days, Local, NaiveDate, NaiveTime, TimeZone, Utc};
use std::collections::BTreeSet;
use std::str::FromStr;

/// Text that should be a calendar event.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{given}' is no calendar event: {problem} (such as 'daily', 'mon..fri 21:30' or '*-*-1/7 2:00')"
)]
pub struct CalendarError {
    given: String,
    problem: &'static str,
}

/// Values that a number may have; all where it does not matter.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Values(Option<BTreeSet<u32>>);

impl Values {
    fn one(value: u32) -> Self {
        Self(Some(BTreeSet::from([value])))
    }

    fn contains(&self, value: u32) -> bool {
        self.0.as_ref().is_none_or(|values| values.contains(&value))
    }

    /// `*`, `*/n`, `a`, `a..b`, `a/n`, and lists of these.
    fn parse(text: &str, lowest: u32, highest: u32) -> Result<Self, &'static str> {
        if text == "*" {
            return Ok(Self(None));
        }
        let number = |text: &str| text.parse::<u32>().map_err(|_| "a number is none");
        let mut values = BTreeSet::new();
        for part in text.split(',') {
            let (range, step) = match part.split_once('/') {
                Some((range, step)) => (range, Some(number(step)?)),
                None => (part, None),
            };
            if step == Some(0) {
                return Err("a step of 0 leads nowhere");
            }
            let (first, last) = match range.split_once("..") {
                _ if range == "*" => (lowest, highest),
                Some((first, last)) => (number(first)?, number(last)?),
                None if step.is_some() => (number(range)?, highest),
                None => (number(range)?, number(range)?),
            };
            if first < lowest || last > highest || first > last {
                return Err("a number is out of range");
            }
            values.extend((first..=last).step_by(step.unwrap_or(1) as usize));
        }
        Ok(Self(Some(values)))
    }
}

/// When something is to happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CalendarEvent {
    /// 0 is Monday
    weekdays: Values,
    years: Values,
    months: Values,
    days: Values,
    hours: Values,
    minutes: Values,
    seconds: Values,
    is_utc: bool,
}

/// Years that are looked at: a date such as February 29 comes within.
const DAYS_AHEAD: u64 = 366 * 9;
const WEEKDAYS: [&str; 7] =
    ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];

fn weekday(text: &str) -> Option<u32> {
    let text = text.to_ascii_lowercase();
    let place = WEEKDAYS.iter().position(|name| text.len() >= 2 && name.starts_with(&text));
    place.and_then(|place| u32::try_from(place).ok())
}

/// `mon`, `mon..fri`, `sat,sun`; none where it speaks of no weekday.
fn weekdays(text: &str) -> Option<Result<Values, &'static str>> {
    if !text.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return None;
    }
    let mut values = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once("..").unwrap_or((part, part));
        let (Some(first), Some(last)) = (weekday(first), weekday(last)) else {
            return Some(Err("a word is no day of the week"));
        };
        if first > last {
            return Some(Err("a range of weekdays runs backwards"));
        }
        values.extend(first..=last);
    }
    Some(Ok(Values(Some(values))))
}

impl FromStr for CalendarEvent {
    type Err = CalendarError;

    fn from_str(given: &str) -> Result<Self, CalendarError> {
        parse(given).map_err(|problem| CalendarError { given: given.to_owned(), problem })
    }
}

fn parse(given: &str) -> Result<CalendarEvent, &'static str> {
    let given = given.trim();
    let (given, is_utc) = match given.strip_suffix(" UTC") {
        Some(event) => (event.trim_end(), true),
        None => (given, false),
    };
    let text = match given {
        "minutely" => "*:*",
        "hourly" => "*:00",
        "daily" => "0:00",
        "weekly" => "mon 0:00",
        "monthly" => "*-*-1 0:00",
        "quarterly" => "*-1,4,7,10-1 0:00",
        "semiannually" | "semi-annually" => "*-1,7-1 0:00",
        "yearly" | "annually" => "*-1-1 0:00",
        other => other,
    };
    let mut event = CalendarEvent {
        weekdays: Values(None),
        years: Values(None),
        months: Values(None),
        days: Values(None),
        hours: Values::one(0),
        minutes: Values::one(0),
        seconds: Values::one(0),
        is_utc,
    };
    let mut words = text.split_ascii_whitespace().peekable();
    if words.peek().is_none() {
        return Err("it is empty");
    }
    if let Some(found) = words.peek().and_then(|word| weekdays(word)) {
        event.weekdays = found?;
        words.next();
    }
    if words.peek().is_some_and(|word| word.contains('-')) {
        let date: Vec<&str> = words.next().unwrap_or_default().split('-').collect();
        let (year, month, day) = match date[..] {
            [year, month, day] => (year, month, day),
            [month, day] => ("*", month, day),
            _ => return Err("a date is not like 2026-12-31 or 12-31"),
        };
        event.years = Values::parse(year, 1970, 9999)?;
        event.months = Values::parse(month, 1, 12)?;
        event.days = Values::parse(day, 1, 31)?;
    }
    if let Some(time) = words.next() {
        let time: Vec<&str> = time.split(':').collect();
        let (hour, minute, second) = match time[..] {
            // A number alone is minutes.
            [minute] => ("*", minute, "0"),
            [hour, minute] => (hour, minute, "0"),
            [hour, minute, second] => (hour, minute, second),
            _ => return Err("a time is not like 21:30 or 21:30:00"),
        };
        event.hours = Values::parse(hour, 0, 23)?;
        event.minutes = Values::parse(minute, 0, 59)?;
        event.seconds = Values::parse(second, 0, 59)?;
    }
    match words.next() {
        None => Ok(event),
        Some(_) => Err("something follows the time"),
    }
}

impl CalendarEvent {
    /// The first time after this one, in Unix seconds; none where there is none in sight.
    pub fn next_after(&self, time: i64) -> Option<i64> {
        match self.is_utc {
            true => self.next_in(&Utc, time),
            false => self.next_in(&Local, time),
        }
    }

    fn next_in<Z: TimeZone>(&self, zone: &Z, time: i64) -> Option<i64> {
        let now = zone.timestamp_opt(time, 0).single()?;
        let first = now.date_naive();
        for ahead in 0..DAYS_AHEAD {
            let day = first.checked_add_days(Days::new(ahead))?;
            if self.is_day(day)
                && let Some(found) = self.on_day(zone, day, time)
            {
                return Some(found);
            }
        }
        None
    }

    fn is_day(&self, day: NaiveDate) -> bool {
        self.weekdays.contains(day.weekday().num_days_from_monday())
            && u32::try_from(day.year()).is_ok_and(|year| self.years.contains(year))
            && self.months.contains(day.month())
            && self.days.contains(day.day())
    }

    /// The first time on a day that lies after `time`.
    fn on_day<Z: TimeZone>(&self, zone: &Z, day: NaiveDate, time: i64) -> Option<i64> {
        let all = |values: &Values, end: u32| {
            (0..end).filter(|value| values.contains(*value)).collect::<Vec<u32>>()
        };
        let (hours, minutes) = (all(&self.hours, 24), all(&self.minutes, 60));
        let seconds = all(&self.seconds, 60);
        for hour in hours {
            for minute in &minutes {
                for second in &seconds {
                    let at = day.and_time(NaiveTime::from_hms_opt(hour, *minute, *second)?);
                    // A time that a change of the clock leaves out does not happen.
                    let Some(at) = zone.from_local_datetime(&at).earliest() else { continue };
                    if at.timestamp() > time {
                        return Some(at.timestamp());
                    }
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::{DateTime, FixedOffset, Timelike};
    use proptest::prelude::*;

    fn next(event: &str, after: &str) -> String {
        let event: CalendarEvent = event.parse().unwrap();
        let after = DateTime::parse_from_rfc3339(after).unwrap().timestamp();
        let found = event.next_in(&Utc, after).unwrap();
        DateTime::from_timestamp(found, 0).unwrap().format("%FT%TZ").to_string()
    }

    #[test]
    fn events_come_when_they_should() {
        // A Friday.
        let now = "2024-01-12T19:30:00Z";
        for (event, expected) in [
            ("minutely", "2024-01-12T19:31:00Z"),
            ("hourly", "2024-01-12T20:00:00Z"),
            ("daily", "2024-01-13T00:00:00Z"),
            ("weekly", "2024-01-15T00:00:00Z"),
            ("monthly", "2024-02-01T00:00:00Z"),
            ("quarterly", "2024-04-01T00:00:00Z"),
            ("semiannually", "2024-07-01T00:00:00Z"),
            ("yearly", "2025-01-01T00:00:00Z"),
            ("21:30", "2024-01-12T21:30:00Z"),
            ("19:30", "2024-01-13T19:30:00Z"),
            ("mon..fri 2:00", "2024-01-15T02:00:00Z"),
            ("sat,sun 8:15:30", "2024-01-13T08:15:30Z"),
            ("*:0/15", "2024-01-12T19:45:00Z"),
            ("0/15", "2024-01-12T19:45:00Z"),
            ("02-29 1:00", "2024-02-29T01:00:00Z"),
            ("*-*-1/7 2..4/2:10", "2024-01-15T02:10:00Z"),
            ("2025-3-1 0:00", "2025-03-01T00:00:00Z"),
            ("tuesday 1:00", "2024-01-16T01:00:00Z"),
            ("sat", "2024-01-13T00:00:00Z"),
            ("mon..fri 2:00 UTC", "2024-01-15T02:00:00Z"),
            ("daily  UTC", "2024-01-13T00:00:00Z"),
        ] {
            assert_eq!(next(event, now), expected, "{event}");
        }
    }

    #[test]
    fn a_suffix_says_that_it_is_utc() {
        let after = DateTime::parse_from_rfc3339("2024-01-12T19:30:00Z").unwrap().timestamp();
        let event: CalendarEvent = "21:00 UTC".parse().unwrap();
        assert_eq!(event.next_after(after), Some(after + 5400), "wherever this runs");
        let local: CalendarEvent = "21:00".parse().unwrap();
        assert_ne!(local, event);
        let east = FixedOffset::east_opt(3600).unwrap();
        assert_eq!(local.next_in(&east, after), Some(after + 1800));
    }

    #[test]
    fn what_is_none_is_refused() {
        for bad in [
            "",
            "often",
            "25:00",
            "1:60",
            "13-01 0:00",
            "a:b",
            "1:2:3:4",
            "fri..mon",
            "1/0",
            "*-*-* 1:00 x",
            "5..2:00",
            "UTC",
            " UTC",
            "2:00 utc",
            "2:00 UTC UTC",
        ] {
            assert!(bad.parse::<CalendarEvent>().is_err(), "{bad}");
        }
        let never: CalendarEvent = "2000-1-1".parse().unwrap();
        assert_eq!(never.next_in(&Utc, 1_700_000_000), None);
    }

    proptest! {
        #[test]
        fn the_next_time_is_that_of_a_search(
            hours in 0u32..24, step in 1u32..30, day in 1u32..29, after in 1_600_000_000i64..1_800_000_000,
        ) {
            let event: CalendarEvent = format!("*-*-{day} {hours}:0/{step}").parse().unwrap();
            let found = event.next_in(&Utc, after).unwrap();
            // Minute after minute.
            let fits = |time: i64| {
                let time = DateTime::from_timestamp(time, 0).unwrap();
                time.day() == day && time.hour() == hours && time.minute().is_multiple_of(step)
            };
            let mut search = after - after.rem_euclid(60) + 60;
            while !fits(search) {
                search += 60;
            }
            prop_assert_eq!(found, search);
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".*") {
            let _ = text.parse::<CalendarEvent>();
        }
    }
}
