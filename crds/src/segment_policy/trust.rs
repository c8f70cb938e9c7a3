//! A rule's condition on images.

use bulkhead_policy::{
    lease::Profile,
    model::{Guard, Side},
};
use serde_json::{Map, Value};

use super::{Action, TrustClause, TrustOf, lower::Reader};

impl Reader<'_, '_> {
    /// The guard of a rule's `trust`. An error, which is reported, takes the rule's permission away.
    pub(super) fn trust(
        &mut self,
        map: &Map<String, Value>,
        path: &str,
        action: Action,
        by_name: bool,
    ) -> Result<Option<Guard>, ()> {
        let field = format!("{path}.trust");
        let value = map.get("trust").unwrap_or(&Value::Null);
        let (clause, unknown) = self.read::<Option<TrustClause>>(value, &field).ok_or(())?;
        let Some(TrustClause { profile, of }) = clause else {
            return Ok(None);
        };
        let mut good = self.known(&unknown, &field);
        let profile = profile.parse::<Profile>();
        let wrong = match (&profile, action) {
            (Err(problem), _) => Some((
                format!("{field}.profile"),
                format!("is {value}, which {problem}", value = value["profile"]),
            )),
            (Ok(_), Action::Deny | Action::Pass) => Some((
                field,
                "is for Allow rules only: what a Deny rule denies would be open when its lease ends; allow what is \
                 trusted instead, and leave the rest to the default"
                    .to_owned(),
            )),
            (Ok(_), Action::Allow) if by_name => Some((
                field,
                "stands beside fqdns, and a rule has one condition; make two rules".to_owned(),
            )),
            (Ok(_), Action::Allow) => None,
        };
        if let Some((field, message)) = wrong {
            self.report.error(field, message);
            good = false;
        }
        let side = match of {
            TrustOf::Peer => Side::Peer,
            TrustOf::Subject => Side::Subject,
        };
        let guard = |profile| Guard::Lease {
            profile,
            side,
            negated: false,
        };
        profile
            .map(guard)
            .map(Some)
            .map_err(|_| ())
            .and_then(|guard| if good { Ok(guard) } else { Err(()) })
    }
}
