//! Dense numbers for names. The number is what the kernel knows; the name behind it is kept in the kernel as well
//! (`NAMES_OF`), so whoever comes back can read what its predecessor wrote.

use std::ops::Bound;

use bulkhead_verdict::layout::InternEntry;

use crate::{digest::Digest, plan::tracked::Tracked};

/// What a number stands for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Name {
    /// Digest of the content.
    pub digest: Digest,
    /// Text for people; what the kernel holds of it.
    pub text: String,
}

impl Name {
    /// A name; the text is cut to what the kernel's entry holds, at the end of a character.
    pub fn new(digest: Digest, text: &str) -> Self {
        let room = InternEntry::default().text.len();
        let mut end = text.len().min(room);
        while !text.is_char_boundary(end) {
            end = end.saturating_sub(1);
        }
        Self {
            digest,
            text: text.get(..end).unwrap_or_default().to_owned(),
        }
    }

    /// The kernel's entry.
    pub fn entry(&self) -> InternEntry {
        let mut entry = InternEntry {
            digest: self.digest.0,
            ..InternEntry::default()
        };
        for (byte, value) in entry.text.iter_mut().zip(self.text.bytes()) {
            *byte = value;
        }
        entry.length = u32::try_from(self.text.len()).unwrap_or(0);
        entry
    }

    /// Reads the kernel's entry; `None` when its length or its text cannot be.
    pub fn read(entry: &InternEntry) -> Option<Self> {
        let text = entry.text.get(..usize::try_from(entry.length).ok()?)?;
        Some(Self {
            digest: Digest(entry.digest),
            text: std::str::from_utf8(text).ok()?.to_owned(),
        })
    }
}

/// Numbers of one kind. They rise, so a number that was freed comes back as late as possible.
#[derive(Debug)]
pub(crate) struct Interner {
    names: Tracked<u32, Name>,
    /// The number of a digest that is handed out; several numbers can have one digest, of which this is the one in use.
    numbers: Tracked<Digest, u32>,
    first: u32,
    next: Tracked<u8, u32>,
}

impl Interner {
    /// Numbers from `first` on, of which these are taken. Of two numbers with one digest `prefer` says which to use.
    pub(crate) fn new(
        first: u32,
        taken: impl IntoIterator<Item = (u32, Name)>,
        prefer: impl Fn(u32, u32) -> u32,
    ) -> Self {
        let mut interner = Self {
            names: Tracked::default(),
            numbers: Tracked::default(),
            first,
            next: Tracked::default(),
        };
        let mut next = first;
        for (number, name) in taken {
            let number_in_use = interner
                .numbers
                .get(&name.digest)
                .map_or(number, |other| prefer(*other, number));
            interner.numbers.set(name.digest, Some(number_in_use));
            interner.names.set(number, Some(name));
            next = next.max(number.checked_add(1).unwrap_or(first));
        }
        interner.next.set(0, Some(next));
        interner.commit();
        interner
    }

    /// The number in use for a digest.
    pub(crate) fn number(&self, digest: &Digest) -> Option<u32> {
        self.numbers.get(digest).copied()
    }

    /// What a number stands for.
    pub(crate) fn name(&self, number: u32) -> Option<&Name> {
        self.names.get(&number)
    }

    /// Every number with its name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Name)> {
        self.names.iter().map(|(number, name)| (*number, name))
    }

    /// Numbers behind one, with their names.
    pub(crate) fn behind(&self, after: Option<u32>) -> impl Iterator<Item = (u32, &Name)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let names = self.names.range((from, Bound::Unbounded));
        names.map(|(number, name)| (*number, name))
    }

    /// How many numbers are taken.
    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    /// The highest number taken. Never to be freed where numbers must not come back: it tells a successor where to go on.
    pub(crate) fn highest(&self) -> Option<u32> {
        self.names.last_key_value().map(|(number, _)| *number)
    }

    /// The number that [`Self::add`] will give out next.
    pub(crate) fn next_number(&self) -> u32 {
        let mut number = self.next.count(&0).max(self.first);
        while self.names.contains_key(&number) {
            number = number.checked_add(1).unwrap_or(self.first);
        }
        number
    }

    /// Never gives out this number or one below, unless the numbers wrap: it is in use, even if it has no name.
    pub(crate) fn skip(&mut self, number: u32) {
        let past = number.checked_add(1).unwrap_or(self.first);
        if past > self.next.count(&0) {
            self.next.set(0, Some(past));
        }
    }

    /// Another name of the same digest for a number.
    pub(crate) fn rename(&mut self, number: u32, name: Name) {
        self.names.set(number, Some(name));
    }

    /// Takes a new number, even if the digest has one already; from now on it is the digest's.
    pub(crate) fn add(&mut self, name: Name) -> u32 {
        let number = self.next_number();
        self.next.set(0, Some(number.checked_add(1).unwrap_or(self.first)));
        self.numbers.set(name.digest, Some(number));
        self.names.set(number, Some(name));
        number
    }

    /// Frees a number.
    pub(crate) fn remove(&mut self, number: u32) {
        if let Some(name) = self.names.set(number, None)
            && self.number(&name.digest) == Some(number)
        {
            self.numbers.set(name.digest, None);
        }
    }

    /// Makes what was done since the last commit final.
    pub(crate) fn commit(&mut self) {
        self.names.commit();
        self.numbers.commit();
        self.next.commit();
    }

    /// Takes back what was done since the last commit.
    pub(crate) fn rollback(&mut self) {
        self.names.rollback();
        self.numbers.rollback();
        self.next.rollback();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(Digest::of("test", [text.as_bytes()]), text)
    }

    #[test]
    fn numbers_rise_and_come_back_late() {
        let mut interner = Interner::new(256, [(300, name("a"))], |_, new| new);
        assert_eq!(interner.number(&name("a").digest), Some(300));
        let b = interner.add(name("b"));
        interner.remove(b);
        assert_eq!(interner.add(name("b")), b + 1);
        assert_eq!(interner.highest(), Some(b + 1));
        let mut interner = Interner::new(256, [(u32::MAX, name("z")), (256, name("y"))], |_, new| new);
        assert_eq!(interner.add(name("x")), 257, "wraps past what is taken");
    }

    #[test]
    fn two_numbers_of_one_digest() {
        let mut interner = Interner::new(256, [(256, name("a")), (257, name("a"))], |_, new| new);
        assert_eq!(interner.number(&name("a").digest), Some(257));
        let third = interner.add(name("a"));
        interner.remove(257);
        assert_eq!(
            interner.number(&name("a").digest),
            Some(third),
            "removing an old one keeps the one in use"
        );
        interner.remove(third);
        assert_eq!(interner.number(&name("a").digest), None);
    }

    #[test]
    fn long_text_is_cut_at_a_character() {
        let name = Name::new(Digest([7; 32]), &"ä".repeat(400));
        assert_eq!(name.text.len(), 444);
        let odd = Name::new(Digest([7; 32]), &format!("x{}", "ä".repeat(400)));
        assert_eq!(odd.text.len(), 443);
        assert_eq!(Name::read(&odd.entry()), Some(odd));
        let broken = InternEntry {
            length: 9999,
            ..InternEntry::default()
        };
        assert_eq!(Name::read(&broken), None);
    }
}
