//! Patterns of rules: `*` is any characters, `?` one (Elastic Load Balancing).

/// Whether a text fits a pattern, bytes compared by `same`.
fn fits(pattern: &[u8], text: &[u8], same: impl Fn(u8, u8) -> bool) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where the last star was, and how much it has taken: one step back is enough.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&c) if c == b'?' || same(c, text[t]) => (p, t) = (p + 1, t + 1),
            _ => match star {
                Some((at, taken)) => {
                    (p, t) = (at + 1, taken + 1);
                    star = Some((at, taken + 1));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

/// With capitals as they are: of paths.
pub(crate) fn exactly(pattern: &str, text: &str) -> bool {
    fits(pattern.as_bytes(), text.as_bytes(), |a, b| a == b)
}

/// Whatever the capitals: of hosts and values of headers.
pub(crate) fn caseless(pattern: &str, text: &str) -> bool {
    fits(pattern.as_bytes(), text.as_bytes(), |a, b| a.eq_ignore_ascii_case(&b))
}

/// Text as a regular expression that is that text.
pub(crate) fn literal(text: &str) -> String {
    let mut regex = String::new();
    for c in text.chars() {
        if !(c.is_ascii_alphanumeric() || !c.is_ascii() || "/-_~=&,:;@!%#'\" <>`".contains(c)) {
            regex.push('\\');
        }
        regex.push(c);
    }
    regex
}

/// A pattern as a regular expression, for those that know no other; `any` is what it has for one character.
pub(crate) fn regex(pattern: &str, any: &str) -> String {
    let mut regex = String::new();
    for c in pattern.chars() {
        match c {
            '*' => regex.extend([any, "*"]),
            '?' => regex.push_str(any),
            _ => regex.push_str(&literal(c.encode_utf8(&mut [0; 4]))),
        }
    }
    regex
}

/// The same where expressions may take long: what was passed over is not looked at again.
pub(crate) fn linear(pattern: &str) -> String {
    let parts: Vec<&str> = pattern.split('*').collect();
    let [first, middle @ .., last] = parts.as_slice() else { return regex(pattern, ".") };
    if middle.is_empty() {
        return regex(pattern, ".");
    }
    let middle = middle.iter().filter(|part| !part.is_empty());
    let middle: Vec<String> = middle.map(|part| format!("(?>.*?{})", regex(part, "."))).collect();
    format!("{}{}.*{}", regex(first, "."), middle.concat(), regex(last, "."))
}

/// A parameter of a query as a regular expression; without a key it is any that has the value.
pub(crate) fn query(key: &str, value: &str) -> String {
    let key = if key.is_empty() { "[^&=]*".to_owned() } else { regex(key, "[^&=]") };
    // One without a value has an empty one.
    let optional = if value.chars().all(|c| c == '*') { "?" } else { "" };
    format!("{key}(={}){optional}", regex(value, "[^&]"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_regular_expression_takes_what_is_special_as_it_is() {
        assert_eq!(regex("/a.b/*?c", "."), r"/a\.b/.*.c");
        assert_eq!(regex("(x)+$", "[^&]"), r"\(x\)\+\$");
        assert_eq!(regex("a b'c", "."), "a b'c");
        assert_eq!(linear("/a*"), "/a.*");
        assert_eq!(linear("/*/x.*/**/edit"), r"/(?>.*?/x\.)(?>.*?/).*/edit");
    }

    #[test]
    fn stars_and_question_marks_stand_for_others() {
        for (pattern, text, fits) in [
            ("/img/*", "/img/a/b.png", true),
            ("/img/*", "/img", false),
            ("/*.php", "/a/b.php", true),
            ("/*.php", "/a/b.php5", false),
            ("/a?c", "/abc", true),
            ("/a?c", "/ac", false),
            ("*", "", true),
            ("/a*b*c", "/aXbYbZc", true),
            ("/A", "/a", false),
        ] {
            assert_eq!(exactly(pattern, text), fits, "{pattern} {text}");
        }
        assert!(caseless("*.Example.com", "www.EXAMPLE.com"));
    }

    #[test]
    fn a_pattern_that_is_made_to_take_long_does_not() {
        let (pattern, text) = ("*a".repeat(60) + "b", "a".repeat(8000));
        assert!(!exactly(&pattern, &text));
    }
}
