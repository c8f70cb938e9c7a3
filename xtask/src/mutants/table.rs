//! The faults and the files they are written in.
//!
//! `xtask/mutants/AREA.txt` is a list of
//!
//! ```text
//! mutant NAME: what is wrong with it, in one line
//! file PATH
//! test [(root)] ARGUMENTS of cargo test [-- arguments of the test binary]
//! <<<<
//! text that is in the file exactly once
//! ====
//! text in its place (may be empty)
//! >>>>
//! ```
//!
//! Between the markers every byte counts but the last line's end, so a text may be part of a line. Lines that begin with
//! `#` between two mutants are comments; of `test` the last one given holds for the mutants behind it. `(root)` marks a test
//! that passes without doing anything unless it is root's.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result, bail};

/// A named fault.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Mutant {
    /// Name on the command line.
    pub(crate) name: String,
    /// Name of the file that lists it.
    pub(crate) area: String,
    /// What is wrong with it.
    pub(crate) what: String,
    /// The file it changes.
    pub(crate) file: String,
    /// Arguments of `cargo test`.
    pub(crate) test: String,
    /// The test needs root.
    pub(crate) needs_root: bool,
    before: String,
    after: String,
}

impl Mutant {
    /// True when it is asked for by this word.
    pub(crate) fn is_called(&self, word: &str) -> bool {
        self.name == word || self.area == word
    }

    /// The file's text with the fault.
    pub(crate) fn applied(&self, text: &str) -> Result<String> {
        match text.matches(&self.before).count() {
            1 => Ok(text.replacen(&self.before, &self.after, 1)),
            count => bail!(
                "mutant {}: its text is {count} times in {} instead of once; adapt xtask/mutants/{}.txt",
                self.name,
                self.file,
                self.area
            ),
        }
    }
}

/// All mutants, by area and in the order of their files.
pub(crate) fn read(root: &Path) -> Result<Vec<Mutant>> {
    let folder = root.join("xtask/mutants");
    let mut paths = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
        paths.push(entry.with_context(|| format!("reading {}", folder.display()))?.path());
    }
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    paths.sort();
    let mut mutants = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let area = path.file_stem().unwrap_or_default().to_string_lossy();
        mutants.extend(parse(&area, &text).with_context(|| format!("{}", path.display()))?);
    }
    let mut names = BTreeSet::new();
    if let Some(twice) = mutants.iter().find(|mutant| !names.insert(&mutant.name)) {
        bail!("two mutants are called {}", twice.name);
    }
    Ok(mutants)
}

fn parse(area: &str, text: &str) -> Result<Vec<Mutant>> {
    let mut mutants = Vec::new();
    let mut lines = text.lines().enumerate();
    let (mut title, mut file, mut test) = (None, None, None);
    while let Some((number, line)) = lines.next() {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "" => {}
            _ if word.starts_with('#') => {}
            "mutant" => title = Some(rest.split_once(": ").context("`mutant` wants `NAME: what`")?),
            "file" => file = Some(rest),
            "test" => test = Some(rest),
            "<<<<" => {
                let mut until = |end: &str| -> Result<String> {
                    let block: Vec<&str> = lines
                        .by_ref()
                        .map(|(_, line)| line)
                        .take_while(|line| *line != end)
                        .collect();
                    Ok(block.join("\n"))
                };
                let (before, after) = (until("====")?, until(">>>>")?);
                let test = test.context("a change without `test`")?;
                let root = test.strip_prefix("(root) ");
                let (name, what) = title.take().context("a change without `mutant`")?;
                if before.is_empty() || before == after {
                    bail!("mutant {name} changes nothing");
                }
                mutants.push(Mutant {
                    name: name.to_owned(),
                    area: area.to_owned(),
                    what: what.to_owned(),
                    file: file.with_context(|| format!("mutant {name} has no `file`"))?.to_owned(),
                    test: root.unwrap_or(test).to_owned(),
                    needs_root: root.is_some(),
                    before,
                    after,
                });
            }
            _ => bail!("line {}: cannot be read: {line}", number + 1),
        }
    }
    if let Some((name, _)) = title {
        bail!("mutant {name} has no change");
    }
    Ok(mutants)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths;

    /// The issue asks for twenty.
    const FEWEST: usize = 20;

    #[test]
    fn every_mutant_applies_exactly_once() {
        let root = paths::root();
        let mutants = read(&root).unwrap();
        assert!(mutants.len() >= FEWEST, "{} mutants", mutants.len());
        let wrong: Vec<String> = mutants
            .iter()
            .filter_map(|mutant| {
                let text = fs::read_to_string(root.join(&mutant.file))
                    .map_err(|error| anyhow::anyhow!("mutant {}: {}: {error}", mutant.name, mutant.file));
                text.and_then(|text| mutant.applied(&text)).err()
            })
            .map(|error| error.to_string())
            .collect();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn the_format_is_read_and_what_it_is_not_is_refused() {
        let text = "# a comment\ntest (root) -p x -- y\nmutant one: first\nfile a.rs\n<<<<\n  a\nb\n====\n>>>>\n\nmutant two: second\nfile b.rs\n<<<<\nc\n====\nd\n>>>>\n";
        let mutants = parse("area", text).unwrap();
        assert_eq!(mutants.len(), 2);
        let [one, two] = mutants.as_slice() else { panic!() };
        assert_eq!((one.before.as_str(), one.after.as_str()), ("  a\nb", ""));
        assert_eq!((two.test.as_str(), two.file.as_str()), ("-p x -- y", "b.rs"));
        assert!(two.needs_root);
        assert_eq!(two.applied("abc").unwrap(), "abd");
        assert!(two.applied("abcc").is_err() && two.applied("ab").is_err());
        for wrong in [
            "mutant one\n",
            "mutant one: first\n",
            "<<<<\na\n====\nb\n>>>>\n",
            "test t\nmutant one: first\nfile a\n<<<<\na\n====\na\n>>>>\n",
            "mutant one: first\nfile a\n<<<<\na\n====\nb\n>>>>\n",
            "nonsense\n",
        ] {
            assert!(parse("area", wrong).is_err(), "{wrong}");
        }
    }
}
