//! Reads the report that ginkgo writes: each spec with its verdict. Only what that one writer makes is understood.

/// What became of a spec.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    Passed,
    /// And what was said about it.
    Failed(String),
    /// It decided itself that it does not apply, and why.
    Skipped(String),
    /// The focus left it out.
    NotSelected,
}

/// One spec.
#[derive(PartialEq, Debug)]
pub(super) struct Spec {
    /// Without what all have in common.
    pub(super) name: String,
    pub(super) verdict: Verdict,
    pub(super) seconds: f64,
}

/// All specs of a report; set-up and reporting steps are listed only when they failed.
pub(super) fn read(xml: &str) -> Vec<Spec> {
    xml.split("<testcase ").skip(1).filter_map(spec).collect()
}

fn spec(text: &str) -> Option<Spec> {
    let text = text.split("</testcase>").next()?;
    let (head, body) = text.split_once('>')?;
    let full = attribute(head, "name")?;
    let verdict = match attribute(head, "status")?.as_str() {
        "passed" => Verdict::Passed,
        "skipped" | "pending" => match attribute(body, "message") {
            // ginkgo's word for what the focus left out; a spec that skips itself says more.
            Some(message) if message != "skipped" => Verdict::Skipped(reason(&message)),
            _ => Verdict::NotSelected,
        },
        other => {
            let said = body.split_once("</failure>").and_then(|(text, _)| text.split_once('>'));
            Verdict::Failed(reason(
                &said.map_or_else(|| other.to_owned(), |(_, text)| unescape(text)),
            ))
        }
    };
    let name = match full.strip_prefix("[It] ") {
        Some(name) => shorten(name),
        None if matches!(verdict, Verdict::Failed(_)) => full,
        None => return None,
    };
    let seconds = attribute(head, "time")
        .and_then(|time| time.parse().ok())
        .unwrap_or_default();
    Some(Spec { name, verdict, seconds })
}

fn reason(message: &str) -> String {
    let message = message.trim();
    let message = message.strip_prefix("skipped - ").unwrap_or(message);
    message.strip_prefix("[FAILED] ").unwrap_or(message).to_owned()
}

fn shorten(name: &str) -> String {
    [
        "[sig-network] ",
        "Netpol ",
        "NetworkPolicy between server and client ",
        " [Feature:NetworkPolicy]",
    ]
    .iter()
    .fold(name.to_owned(), |name, part| name.replace(part, ""))
}

/// The value of an attribute. Values never hold a bare `"` or `>`.
fn attribute(text: &str, name: &str) -> Option<String> {
    let from = text.find(&format!("{name}=\""))?;
    let value = text.get(from..)?.split('"').nth(1)?;
    Some(unescape(value))
}

fn unescape(text: &str) -> String {
    text.replace("&#34;", "\"")
        .replace("&#39;", "'")
        .replace("&#xA;", "\n")
        .replace("&#x9;", "\t")
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&amp;", "&")
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
  <testsuites tests="5"><testsuite name="Kubernetes NetworkPolicy" tests="5">
    <testcase name="[SynchronizedBeforeSuite]" classname="x" status="passed" time="0.2"></testcase>
    <testcase name="[It] [sig-network] Netpol NetworkPolicy between server and client should support a &#39;default-deny-ingress&#39; policy [Feature:NetworkPolicy]" classname="x" status="failed" time="41.5">
      <failure message="" type="failed">[FAILED] had 4 wrong results&#xA;of 81&#xA;</failure><system-err>&gt; name="no"</system-err>
    </testcase>
    <testcase name="[It] [sig-network] Netpol API should support creating" classname="x" status="passed" time="1.25"></testcase>
    <testcase name="[It] left out" classname="x" status="skipped" time="0"><skipped message="skipped"></skipped></testcase>
    <testcase name="[It] by itself" classname="x" status="skipped" time="0"><skipped message="skipped - needs &lt;this&gt;"></skipped></testcase>
    <testcase name="[It] late" classname="x" status="timedout" time="9"><failure message="" type="timedout">took &amp; took</failure></testcase>
  </testsuite></testsuites>"#;

    #[test]
    fn verdicts_and_reasons_are_read() {
        let spec = |name: &str, verdict, seconds| Spec {
            name: name.to_owned(),
            verdict,
            seconds,
        };
        assert_eq!(
            read(REPORT),
            [
                spec(
                    "should support a 'default-deny-ingress' policy",
                    Verdict::Failed("had 4 wrong results\nof 81".to_owned()),
                    41.5
                ),
                spec("API should support creating", Verdict::Passed, 1.25),
                spec("left out", Verdict::NotSelected, 0.0),
                spec("by itself", Verdict::Skipped("needs <this>".to_owned()), 0.0),
                spec("late", Verdict::Failed("took & took".to_owned()), 9.0),
            ]
        );
    }

    #[test]
    fn a_failed_set_up_is_a_failure() {
        let failed = REPORT.replacen("status=\"passed\"", "status=\"failed\"", 1);
        assert!(matches!(read(&failed)[0].verdict, Verdict::Failed(_)));
    }
}
