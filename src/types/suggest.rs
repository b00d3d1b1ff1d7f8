//! Nearest names. Owns: which known word somebody probably meant, for errors about unknown keys and fields.

/// The word of `known` that is nearest to `word`, if one is near enough to be meant.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word: String = word.chars().take(64).collect();
    let folded = fold(&word);
    known
        .into_iter()
        .map(|candidate| (distance(&folded, &fold(candidate)), candidate))
        .min()
        .filter(|(far, candidate)| *far <= (candidate.len().max(word.len()) / 3).max(1))
        .map(|(_, candidate)| candidate)
}

/// `max_downtime`, `maxDowntime` and `max-downtime` are one word to whoever mistypes it.
fn fold(word: &str) -> Vec<char> {
    word.chars().filter(|c| !matches!(c, '_' | '-')).flat_map(char::to_lowercase).collect()
}

/// Edits between two words, a swap of neighbours counting as one.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let changed = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = changed.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

/// The unknown field and the known ones in serde's words
/// ("unknown field `nmae`, expected one of `name`, `cpu`"), if that is what `message` says.
pub fn unknown_field(message: &str) -> Option<(&str, Vec<&str>)> {
    let rest = message.split_once("unknown field `")?.1;
    let (field, rest) = rest.split_once('`')?;
    let known = rest.split('`').skip(1).step_by(2).collect();
    Some((field, known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_word_and_nonsense_finds_none() {
        let known = ["name", "cpu", "memoryBytes", "killAt"];
        assert_eq!(nearest("nmae", known), Some("name"));
        assert_eq!(nearest("memory_bytes", known), Some("memoryBytes"));
        assert_eq!(nearest("memoryByte", known), Some("memoryBytes"));
        assert_eq!(nearest("kill_at", known), Some("killAt"));
        assert_eq!(nearest("wheelbarrow", known), None);
        assert_eq!(nearest("", known), None);
    }

    #[test]
    fn serde_names_the_field_and_what_it_knows() {
        let message = "unknown field `nmae`, expected one of `name`, `cpu` at line 1";
        assert_eq!(unknown_field(message), Some(("nmae", vec!["name", "cpu"])));
        assert_eq!(unknown_field("unknown field `a`, there are no fields"), Some(("a", vec![])));
        assert_eq!(unknown_field("missing field `name`"), None);
    }
}
