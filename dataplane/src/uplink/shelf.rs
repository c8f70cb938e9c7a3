//! The last good text of every feed on disk, so that a node that starts while a server is away drops what it dropped.

use std::{
    fs,
    io::{self, ErrorKind, Write as _},
    path::{Path, PathBuf},
};

use super::options::FeedOption;

/// Folder below the agent's state.
const FOLDER: &str = "feeds";

/// The texts of some feeds.
#[derive(Clone, Debug)]
pub(crate) struct Shelf {
    folder: PathBuf,
}

impl Shelf {
    /// Makes the folder; nothing else changes.
    pub(crate) fn open(state: &Path) -> io::Result<Self> {
        let folder = state.join(FOLDER);
        fs::create_dir_all(&folder)?;
        Ok(Self { folder })
    }

    fn path(&self, feed: &FeedOption) -> PathBuf {
        self.folder.join(format!("{}.txt", feed.name))
    }

    /// The last good text of a feed, if it came from the same place.
    pub(crate) fn text(&self, feed: &FeedOption) -> io::Result<Option<String>> {
        let text = match fs::read_to_string(self.path(feed)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        let Some((first, rest)) = text.split_once('\n') else {
            return Ok(None);
        };
        Ok((first == heading(feed)).then(|| rest.to_owned()))
    }

    /// Keeps a text: the old one or the new one is there, whenever we die.
    pub(crate) fn keep(&self, feed: &FeedOption, text: &str) -> io::Result<()> {
        let path = self.path(feed);
        let beside = path.with_extension("new");
        let mut file = fs::File::create(&beside)?;
        writeln!(file, "{}", heading(feed))?;
        file.write_all(text.as_bytes())?;
        file.sync_data()?;
        fs::rename(beside, path)
    }

    /// True when these feeds, in this order, are those of last time. From now on they are.
    pub(crate) fn same_order(&self, feeds: &[FeedOption]) -> io::Result<bool> {
        let path = self.folder.join("order");
        let names: Vec<&str> = feeds.iter().map(|feed| feed.name.as_str()).collect();
        let order = names.join("\n");
        let same = match fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            before => before? == order,
        };
        if !same {
            fs::write(path, order)?;
        }
        Ok(same)
    }
}

fn heading(feed: &FeedOption) -> String {
    format!("# of {}", feed.source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_kept_for_its_feed_and_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(folder.path()).unwrap();
        let feed: FeedOption = "drop=/etc/drop.txt".parse().unwrap();
        assert_eq!(shelf.text(&feed).unwrap(), None);
        shelf.keep(&feed, "192.0.2.1\n").unwrap();
        shelf.keep(&feed, "192.0.2.2\n").unwrap();
        assert_eq!(shelf.text(&feed).unwrap().as_deref(), Some("192.0.2.2\n"));
        let moved: FeedOption = "drop=/etc/other.txt".parse().unwrap();
        assert_eq!(shelf.text(&moved).unwrap(), None, "another list");
        assert!(!shelf.same_order(std::slice::from_ref(&feed)).unwrap());
        assert!(shelf.same_order(&[feed]).unwrap());
    }
}
