//! From numbers back to names: what a flow record, a denial or a status line shows a person.

use std::{borrow::Cow, collections::HashMap};

use bulkhead_verdict::layout::{InternEntry, InternKey, identity, intern_kind, rule};

use super::op::MapOp;
use crate::{digest::Digest, intern::Name, model::Builtin};

/// The names behind interned numbers. Built from `NAMES_OF`, and kept up to date by showing it every write.
///
/// A name stays readable here as long as in the map; of rules the planner keeps names for a while after their last use.
#[derive(Clone, Debug, Default)]
pub struct Names {
    names: HashMap<InternKey, Name>,
}

impl Names {
    /// Reads `NAMES_OF`. Entries that cannot be read are left out.
    pub fn read<'a>(entries: impl IntoIterator<Item = (&'a InternKey, &'a InternEntry)>) -> Self {
        let names = entries
            .into_iter()
            .filter_map(|(key, entry)| Some((*key, Name::read(entry)?)));
        Self { names: names.collect() }
    }

    /// Takes a write into account.
    pub fn observe(&mut self, op: &MapOp) {
        match op {
            MapOp::Intern(key, entry) => {
                if let Some(name) = Name::read(entry) {
                    self.names.insert(*key, name);
                }
            }
            MapOp::RemoveIntern(key) => drop(self.names.remove(key)),
            _ => {}
        }
    }

    fn get(&self, kind: u32, number: u32) -> Option<&Name> {
        self.names.get(&InternKey { kind, number })
    }

    fn text(&self, kind: u32, number: u32, what: &str) -> Cow<'_, str> {
        match self.get(kind, number) {
            Some(name) => Cow::Borrowed(&name.text),
            None => Cow::Owned(format!("unknown {what} {number}")),
        }
    }

    /// What a person reads about a rule: `NetworkPolicy/shop/db ingress[0]`. Empty for "no rule was reached".
    pub fn rule(&self, number: u32) -> Cow<'_, str> {
        let builtin = match number {
            rule::NONE => return Cow::Borrowed(""),
            rule::SELF => Builtin::SelfTraffic,
            rule::NODE => Builtin::Node,
            rule::DEFAULT_ALLOW => Builtin::DefaultAllow,
            rule::CONTROL => Builtin::Control,
            rule::UNMANAGED => Builtin::Unmanaged,
            rule::MIXED_BACKENDS => Builtin::MixedBackends,
            rule::FORWARDED => Builtin::Forwarded,
            rule::FAILSAFE => Builtin::Failsafe,
            rule::NODE_PORT => Builtin::NodePort,
            _ => return self.text(intern_kind::RULE, number, "rule"),
        };
        Cow::Owned(builtin.to_string())
    }

    /// The digest of an identity; `None` for a reserved or unknown one.
    pub fn identity(&self, number: u32) -> Option<Digest> {
        self.get(intern_kind::IDENTITY, number).map(|name| name.digest)
    }

    /// What a person reads about an identity: its atoms, or the name of a reserved one.
    pub fn identity_text(&self, number: u32) -> Cow<'_, str> {
        match number {
            identity::NONE => Cow::Borrowed("reserved:none"),
            identity::UNKNOWN_POD => Cow::Borrowed("reserved:unknown-pod"),
            identity::ANY_POD => Cow::Borrowed("reserved:any-pod"),
            identity::ANY_NODE => Cow::Borrowed("reserved:any-node"),
            identity::ANY_ADDRESS => Cow::Borrowed("reserved:any-address"),
            _ => self.text(intern_kind::IDENTITY, number, "identity"),
        }
    }

    /// The digest of a ruleset.
    pub fn ruleset(&self, number: u32) -> Option<Digest> {
        self.get(intern_kind::RULESET, number).map(|name| name.digest)
    }

    /// What a person reads about a ruleset: its direction and policies.
    pub fn ruleset_text(&self, number: u32) -> Cow<'_, str> {
        self.text(intern_kind::RULESET, number, "ruleset")
    }

    /// The workload of a slot, `namespace/name`.
    pub fn endpoint(&self, slot: u32) -> Option<&str> {
        self.get(intern_kind::ENDPOINT, slot).map(|name| name.text.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_writes() {
        let mut names = Names::default();
        let key = InternKey {
            kind: intern_kind::RULE,
            number: 300,
        };
        let entry = Name::new(Digest([1; 32]), "NetworkPolicy/shop/db ingress[0]").entry();
        names.observe(&MapOp::Intern(key, Box::new(entry)));
        assert_eq!(names.rule(300), "NetworkPolicy/shop/db ingress[0]");
        assert_eq!(names.rule(rule::NODE), "builtin/node");
        assert_eq!(names.rule(rule::NONE), "");
        names.observe(&MapOp::RemoveIntern(key));
        assert_eq!(names.rule(300), "unknown rule 300");
        let names = Names::read([(&key, &entry)]);
        assert_eq!(names.rule(300), "NetworkPolicy/shop/db ingress[0]");
        assert_eq!(names.identity_text(identity::ANY_POD), "reserved:any-pod");
    }
}
