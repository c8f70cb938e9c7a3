//! What a pod's annotation claims of its images. Whoever may write the pod may claim anything: this stands where verified evidence
//! about image digests will, and nothing else knows where claims come from.

use std::collections::BTreeMap;

use bulkhead_policy::lease::{CLAIMS_MAX, Claims, Deadline, Profile};
use k8s_openapi::jiff::Timestamp;

use crate::report::Report;

/// Annotation with profiles and until when the pod's images satisfy them: `production=2026-12-01T00:00:00Z,signed=always`.
const CLAIMS: &str = "trust.bulkhead.dev/claims";

/// The claims of a pod. A text that cannot be read whole claims nothing, and that is reported.
pub(super) fn read(annotations: Option<&BTreeMap<String, String>>, report: &mut Report<'_>) -> Claims {
    let text = annotations
        .and_then(|all| all.get(CLAIMS))
        .map_or("", |text| text.trim());
    if text.is_empty() {
        return Claims::new();
    }
    parse(text).unwrap_or_else(|problem| {
        report.error(
            format!("metadata.annotations[{CLAIMS}]"),
            format!(
                "{problem}; the pod claims nothing, so no rule with trust holds for it; write \
                 profile=2026-12-01T00:00:00Z or profile=always, with commas between"
            ),
        );
        Claims::new()
    })
}

fn parse(text: &str) -> Result<Claims, String> {
    let mut claims = Claims::new();
    for item in text.split(',').map(str::trim) {
        let (name, until) = item.split_once('=').ok_or_else(|| format!("{item:?} is no claim"))?;
        let profile: Profile = { name.trim() }
            .parse()
            .map_err(|problem| format!("{name:?} {problem}"))?;
        let deadline = deadline(until.trim())?;
        if claims.insert(profile, deadline).is_some() {
            return Err(format!("{name:?} is claimed twice"));
        }
    }
    if claims.len() > CLAIMS_MAX {
        return Err(format!("has {} claims, and a pod may make {CLAIMS_MAX}", claims.len()));
    }
    Ok(claims)
}

/// `always`, or a moment as RFC 3339 has it.
fn deadline(text: &str) -> Result<Deadline, String> {
    if text == "always" {
        return Ok(Deadline::ALWAYS);
    }
    let moment: Timestamp = text
        .parse()
        .map_err(|_| format!("{text:?} is neither always nor a date and time with a time zone"))?;
    let wall = u64::try_from(moment.as_nanosecond())
        .ok()
        .filter(|wall| *wall != u64::MAX);
    wall.map(Deadline)
        .ok_or_else(|| format!("{text:?} is not between 1970 and 2554"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_read() {
        let claims = parse("production=2026-11-30T23:59:59Z, signed = always").unwrap();
        let texts: Vec<String> = claims.iter().map(|(name, until)| format!("{name} {until}")).collect();
        assert_eq!(texts, ["production 2026-11-30T23:59:59Z", "signed always"]);
        assert_eq!(
            parse("a=2026-12-01T00:59:59.25+01:00").unwrap()[&"a".parse().unwrap()].to_string(),
            "2026-11-30T23:59:59.250Z"
        );
    }

    #[test]
    fn what_is_half_good_claims_nothing() {
        for (text, problem) in [
            ("production", "\"production\" is no claim"),
            ("a=always,", "\"\" is no claim"),
            ("A=always", "\"A\" is not the name of a profile"),
            ("a=tomorrow", "\"tomorrow\" is neither always nor a date"),
            ("a=2026-12-01", "\"2026-12-01\" is neither"),
            ("a=2026-12-01T00:00:00", "\"2026-12-01T00:00:00\" is neither"),
            ("a=1969-12-31T00:00:00Z", "is not between 1970 and 2554"),
            ("a=always,a=always", "\"a\" is claimed twice"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(problem), "{text}: {error}");
        }
        let many: Vec<String> = (0..=CLAIMS_MAX).map(|number| format!("p{number}=always")).collect();
        assert_eq!(
            parse(&many.join(",")).unwrap_err(),
            "has 17 claims, and a pod may make 16"
        );
    }
}
