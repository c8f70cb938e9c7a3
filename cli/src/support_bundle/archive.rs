//! The file that the parts go into: a gzipped tar, readable by its owner only.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use flate2::{Compression, write::GzEncoder};

use super::scrub::scrub;

/// An archive that is being written.
pub(super) struct Archive {
    tar: tar::Builder<GzEncoder<File>>,
    /// The folder that everything in it is in.
    folder: String,
    seconds: u64,
}

impl Archive {
    /// Creates the file; one that is there already is not overwritten.
    pub(super) fn create(path: &Path, folder: &str) -> anyhow::Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .with_context(|| format!("creating {}; --file names another", path.display()))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(Self {
            tar: tar::Builder::new(GzEncoder::new(file, Compression::default())),
            folder: folder.to_owned(),
            seconds: now.map_or(0, |time| time.as_secs()),
        })
    }

    /// Adds a text without the secrets in it. Gives its size.
    pub(super) fn add(&mut self, name: &str, text: &[u8]) -> anyhow::Result<usize> {
        let text = String::from_utf8_lossy(text);
        let text = scrub(&text);
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(text.len())?);
        header.set_mode(0o600);
        header.set_mtime(self.seconds);
        self.tar
            .append_data(&mut header, format!("{}/{name}", self.folder), text.as_bytes())
            .with_context(|| format!("writing {name} into the archive"))?;
        Ok(text.len())
    }

    /// Completes the file; gives its size.
    pub(super) fn finish(self) -> anyhow::Result<u64> {
        let file = self
            .tar
            .into_inner()
            .and_then(GzEncoder::finish)
            .context("completing the archive")?;
        Ok(file.metadata().context("completing the archive")?.len())
    }

    /// Removes the file again.
    pub(super) fn discard(self, path: &Path) {
        drop(self.tar);
        // A file that stays behind is empty, and the error before it matters more.
        drop(fs::remove_file(path));
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn what_goes_in_comes_out_without_secrets_and_nobody_else_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.tar.gz");
        let mut archive = Archive::create(&path, "b").unwrap();
        archive
            .add("log.txt", b"a\nAuthorization: Bearer abcdefgh12345678\nc\n")
            .unwrap();
        assert_eq!(archive.finish().unwrap(), fs::metadata(&path).unwrap().len());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(File::open(&path).unwrap()));
        let mut entries = tar.entries().unwrap();
        let mut entry = entries.next().unwrap().unwrap();
        assert_eq!(entry.path().unwrap(), Path::new("b/log.txt"));
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        assert!(
            text.starts_with("a\n") && text.ends_with("c\n") && !text.contains("abcdefgh"),
            "{text}"
        );
        assert!(Archive::create(&path, "b").is_err(), "it is not overwritten");
    }
}
