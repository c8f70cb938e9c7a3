//! Blacks out what looks like a key or a token. We never read a Secret; this is for what others wrote into logs, arguments or annotations.

use std::borrow::Cow;

const BLACK: &str = "(blacked out)";
/// Words after which a secret stands: `Bearer abc`, `"password": "abc"`, `--token=abc`. In small letters.
const WORDS: [&str; 8] = [
    "bearer", "basic", "password", "passwd", "secret", "token", "api-key", "apikey",
];
/// A value of fewer letters is a word of a sentence, not a secret.
const SECRET_LETTERS_MIN: usize = 8;

/// The same text without secrets. Line breaks stay where they are.
pub(super) fn scrub(text: &str) -> Cow<'_, str> {
    let small = text.to_ascii_lowercase();
    let suspicious =
        small.contains("private key") || small.contains("eyj") || WORDS.iter().any(|word| small.contains(word));
    if !suspicious {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut in_key = false;
    for line in text.split_inclusive('\n') {
        let begins = line.contains("-----BEGIN ") && line.contains("PRIVATE KEY");
        let ends = line.contains("-----END ") && line.contains("PRIVATE KEY");
        if begins || in_key {
            // One line for each, so that numbers of lines stay true.
            out.push_str(BLACK);
            out.push_str(if line.ends_with('\n') { "\n" } else { "" });
        } else {
            scrub_line(line, &mut out);
        }
        in_key = (in_key || begins) && !ends;
    }
    Cow::Owned(out)
}

fn scrub_line(line: &str, out: &mut String) {
    let mut rest = line;
    // The last two words before the value: in `Authorization: Bearer x` a sign may stand between.
    let mut after_word = false;
    while let Some(first) = rest.chars().next() {
        let letters = rest.find(|letter: char| !is_value(letter)).unwrap_or(rest.len());
        if letters == 0 {
            // The end of a value ends the word's reach: `token is, secondly`.
            after_word &= matches!(first, ' ' | ':' | '=' | '"' | '\'' | '\\' | '[');
            out.push(first);
            rest = rest.get(first.len_utf8()..).unwrap_or_default();
            continue;
        }
        let (value, then) = rest.split_at_checked(letters).unwrap_or((rest, ""));
        rest = then;
        let hidden = is_token(value) || (after_word && is_secret(value));
        out.push_str(if hidden { BLACK } else { value });
        let small = value.to_ascii_lowercase();
        after_word = WORDS.iter().any(|word| small.ends_with(word));
    }
}

/// Letters of tokens, base64 and passwords; `=` is left out, which stands before values too.
fn is_value(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.' | '/' | '+' | '~' | '!' | '@' | '#' | '$' | '%')
}

/// A JSON Web Token: three parts in base64, of which the first is an object.
fn is_token(value: &str) -> bool {
    value.starts_with("eyJ") && value.len() > 30 && value.matches('.').count() >= 2
}

/// After a word such as `token`: not a word of a sentence, a path or a name of ours.
fn is_secret(value: &str) -> bool {
    let plain = |letter: char| letter.is_ascii_lowercase() || matches!(letter, '-' | '.' | '/' | '_');
    value.len() >= SECRET_LETTERS_MIN && !value.chars().all(plain) && !value.starts_with('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_blacked_out() {
        let jwt = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrdWJlcm5ldGVzIn0.c2lnbmF0dXJlLW9mLXRoaXM";
        for (text, secret) in [
            ("Authorization: Bearer s3cr3t-of-mine-12", "s3cr3t"),
            (&format!("{{\"jwt\":\"{jwt}\"}}"), "eyJpc3Mi"),
            ("{\"password\": \"hunter2hunter2\"}", "hunter2"),
            (
                "{\"name\":\"DB_PASSWORD\",\"value\":1}\n--token=abcd1234efgh x",
                "abcd1234",
            ),
            ("args: [\"--secret=Zm9vYmFyYmF6\"]", "Zm9v"),
        ] {
            let clean = scrub(text);
            assert!(
                !clean.contains(secret) && clean.contains(BLACK),
                "{text} became {clean}"
            );
        }
        let key = "a\n-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEI\n-----END EC PRIVATE KEY-----\nb\n";
        assert_eq!(scrub(key), format!("a\n{BLACK}\n{BLACK}\n{BLACK}\nb\n"));
    }

    #[test]
    fn what_is_needed_stays() {
        for text in [
            "{\"serviceAccountToken\":{\"path\":\"token\",\"audience\":\"bulkhead-controller\"}}",
            "the token of node n1 is refused: it is of another audience",
            "Secret bulkhead-system/bulkhead-ca created",
            "mountPath: /var/run/bulkhead/token, readOnly: true",
            "NetworkPolicy/shop/db@3 ingress[0] 10.244.1.7:8080 → 10.244.2.9:5432",
            "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
        ] {
            assert_eq!(scrub(text), text);
        }
    }
}
