//! Patterns of names: what they match, how they are read, and that the kernel's tables mean the same.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

use std::collections::BTreeSet;

use bulkhead_verdict::dns::{reversed_name, table::MemberKey};
use proptest::{collection::vec, prelude::*, sample::select};

use super::{NameTables, Names, Pattern, PatternError};

fn pattern(text: &str) -> Pattern {
    text.parse().unwrap()
}

fn names(texts: &[&str]) -> Names {
    Names::new(texts.iter().map(|text| pattern(text)).collect())
}

/// What the kernel makes of a name: the class it would be learned with.
fn class(tables: &NameTables, name: &str) -> u32 {
    let key = reversed_name(name).unwrap();
    let longest = (0..=key.len())
        .rev()
        .find_map(|length| tables.patterns.get(&key[..length]));
    let Some(entry) = longest else { return 0 };
    let more = key.len() - usize::try_from(entry.length).unwrap();
    match more {
        0 => entry.exact,
        _ if more == usize::from(*key.last().unwrap()) + 1 => entry.child,
        _ => entry.deeper,
    }
}

#[test]
fn a_wildcard_is_one_label_and_two_stars_are_any_number() {
    let names = names(&["api.example.com", "*.shop.test", "**.deep.test"]);
    for (name, expected) in [
        ("api.example.com", true),
        ("API.Example.COM.", true),
        ("x.api.example.com", false),
        ("example.com", false),
        ("a.shop.test", true),
        ("b.a.shop.test", false),
        ("shop.test", false),
        ("notshop.test", false),
        ("a.deep.test", true),
        ("c.b.a.deep.test", true),
        ("deep.test", false),
        ("xdeep.test", false),
    ] {
        assert_eq!(names.has(&pattern(name)), expected, "{name}");
    }
}

#[test]
fn what_is_no_pattern_is_refused() {
    for text in ["", ".", "*", "*.", "**", "**.", "*.*"] {
        assert_eq!(text.parse::<Pattern>(), Err(PatternError::Empty), "{text}");
    }
    for text in ["a..b", "a.*.b", "*a.b", "a b.c", "ä.de", "-*.x"] {
        assert!(matches!(text.parse::<Pattern>(), Err(PatternError::Label(_))), "{text}");
    }
    assert!(matches!("a".repeat(64).parse::<Pattern>(), Err(PatternError::Label(_))));
    assert_eq!("a.".repeat(130).parse::<Pattern>(), Err(PatternError::TooLong));
}

#[test]
fn what_was_learned_for_a_former_pattern_stays_in_the_wider_one() {
    let wide = names(&["*.example.com"]);
    let former = [pattern("api.example.com"), pattern("gone.test")].into();
    let tables = NameTables::of([&wide], &former);
    let member = |class: &str| MemberKey {
        class: pattern(class).number(),
        set: wide.number(),
    };
    assert!(tables.members.contains(&member("api.example.com")));
    assert!(tables.members.contains(&member("*.example.com")));
    assert!(!tables.classes.contains_key(&pattern("gone.test").number()));
}

fn domains() -> impl Strategy<Value = String> {
    vec(select(&["a", "b", "xa"][..]), 1..4).prop_map(|labels| labels.join("."))
}

fn patterns() -> impl Strategy<Value = Pattern> {
    (select(&["", "*.", "**."][..]), domains()).prop_map(|(wildcard, domain)| pattern(&format!("{wildcard}{domain}")))
}

proptest! {
    /// The tables say of every name and every set what the patterns say.
    #[test]
    fn the_tables_mean_the_patterns(
        sets in vec(vec(patterns(), 1..4), 1..4),
        former in vec(patterns(), 0..3),
        asked in vec(select(&["a", "b", "xa", "c"][..]), 1..5),
    ) {
        let name = asked.join(".");
        let sets: Vec<Names> = sets.into_iter().map(|set| Names::new(set.into_iter().collect())).collect();
        let former: BTreeSet<Pattern> = former.into_iter().collect();
        let tables = NameTables::of(&sets, &former);
        prop_assert_eq!(&tables.refused, &Vec::<String>::new());
        let class = class(&tables, &name);
        for set in &sets {
            let learned = class != 0 && tables.members.contains(&MemberKey { class, set: set.number() });
            prop_assert_eq!(learned, set.has(&pattern(&name)), "{} in [{}]", name, set);
        }
    }
}
