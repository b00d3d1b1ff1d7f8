//! Words and figures of the page. Owns: how text becomes HTML, how counts and times are written.
//! Always: what came from outside goes through [`Esc`].
//! Not here: what is said (`page.rs`, `matrix.rs`).

use std::fmt;

/// Text that came from somewhere, as HTML that shows it and does nothing else.
pub struct Esc<'a>(pub &'a str);

impl fmt::Display for Esc<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                // What turns the order of letters round, or is not to be seen, would show another replay line.
                '\n' | '\t' => write!(f, "{c}")?,
                c if c.is_control()
                    || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
                {
                    write!(f, "\\u{{{:x}}}", u32::from(c))?;
                }
                c => write!(f, "{c}")?,
            }
        }
        Ok(())
    }
}

/// A count, in groups of three digits.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A count in a narrow cell: rounded down from ten thousand on.
pub fn short_count(n: u64) -> String {
    match n {
        0..10_000 => n.to_string(),
        10_000..10_000_000 => format!("{}k", n / 1_000),
        10_000_000..10_000_000_000 => format!("{}M", n / 1_000_000),
        _ => format!("{}G", n / 1_000_000_000),
    }
}

/// A time in its two largest units.
pub fn span(ms: u64) -> String {
    let (s, min, h, d) = (ms / 1_000, ms / 60_000, ms / 3_600_000, ms / 86_400_000);
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", s, ms % 1_000 / 100),
        60_000..3_600_000 => format!("{min} min {} s", s % 60),
        3_600_000..86_400_000 => format!("{h} h {} min", min % 60),
        _ => format!("{} d {} h", count(d), h % 24),
    }
}

/// `1 seed`, `2 seeds`.
pub fn of(n: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(n), if n == 1 { one } else { many })
}

/// Names after each other, as in a sentence.
pub fn listed(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_as_people_write_them() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([9_999, 10_000, 12_345_678].map(short_count), ["9999", "10k", "12M"]);
        let spans = [999, 1_250, 61_000, 3_660_000, 90_000_000].map(span);
        assert_eq!(spans, ["999 ms", "1.2 s", "1 min 1 s", "1 h 1 min", "1 d 1 h"]);
        assert_eq!(listed(&["a", "b", "c"]), "a, b and c");
    }

    #[test]
    fn what_came_from_outside_is_shown_and_does_nothing() {
        assert_eq!(Esc("<b a='\"&\">").to_string(), "&lt;b a=&#39;&quot;&amp;&quot;&gt;");
        assert_eq!(Esc("a\u{202e}b\u{0}c").to_string(), "a\\u{202e}b\\u{0}c");
    }
}
