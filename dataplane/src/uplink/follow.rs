//! Follows one feed: a file by the kernel's notices and a look now and then, a URL by asking.

use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use hyper::Uri;
use notify::{RecursiveMode, Watcher};
use tokio::{
    fs,
    sync::mpsc,
    time::{sleep, timeout},
};

use super::{
    fetch::{Answer, Client, Version},
    options::Source,
};
use crate::chain;

/// How often a file is looked at without a notice: mounted volumes have none.
const LOOK: Duration = Duration::from_secs(5);
/// A file that is being written is left alone for so long.
const SETTLE: Duration = Duration::from_millis(50);
/// First pause after a failure; it doubles up to the interval.
const RETRY_FIRST: Duration = Duration::from_secs(1);

/// What became of a look at a feed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Seen {
    /// A text.
    Text(String),
    /// Nothing new.
    Same,
    /// It cannot be had.
    Failed(String),
}

/// News of a feed, by its index.
pub(crate) type News = (usize, Seen);

/// Follows until nobody listens.
pub(crate) async fn follow(index: usize, source: Source, client: Client, interval: Duration, news: mpsc::Sender<News>) {
    match source {
        Source::File(path) => file(index, path, news).await,
        Source::Url(url) => ask(index, url, client, interval, news).await,
    }
}

async fn ask(index: usize, url: Uri, client: Client, interval: Duration, news: mpsc::Sender<News>) {
    let (mut held, mut retry) = (Version::default(), RETRY_FIRST);
    loop {
        let (seen, pause) = match client.get(&url, &held).await {
            Ok(Answer::Same) => (Seen::Same, interval),
            Ok(Answer::New(text, version)) => {
                held = version;
                (Seen::Text(text), interval)
            }
            Err(error) => {
                let pause = retry.min(interval);
                retry = (retry * 2).min(interval);
                (Seen::Failed(chain(error.as_ref())), pause)
            }
        };
        if !matches!(seen, Seen::Failed(_)) {
            retry = RETRY_FIRST;
        }
        if news.send((index, seen)).await.is_err() {
            return;
        }
        sleep(pause).await;
    }
}

/// What tells one version of a file from another.
type Stamp = (u64, SystemTime, u64);

async fn stamp(path: &Path) -> io::Result<Stamp> {
    use std::os::unix::fs::MetadataExt as _;
    let found = fs::metadata(path).await?;
    Ok((found.len(), found.modified()?, found.ino()))
}

async fn file(index: usize, path: PathBuf, news: mpsc::Sender<News>) {
    let (notices, mut noticed) = mpsc::channel(1);
    let watcher = watch(&path, notices);
    if let Err(error) = &watcher {
        tracing::warn!(file = %path.display(), "is looked at every {} s only: {error:#}", LOOK.as_secs());
    }
    let mut held: Option<Stamp> = None;
    let mut failed = false;
    loop {
        let seen = match stamp(&path).await {
            Ok(found) if held == Some(found) => None,
            Ok(found) => match fs::read(&path).await {
                // Replaced while it was read: the next look finds that.
                Ok(bytes) => {
                    held = Some(found);
                    let text = String::from_utf8(bytes).map(Seen::Text);
                    Some(text.unwrap_or_else(|_| Seen::Failed("what it holds is no text".to_owned())))
                }
                Err(error) => Some(Seen::Failed(error.to_string())),
            },
            Err(error) => {
                held = None;
                Some(Seen::Failed(error.to_string()))
            }
        };
        // A failure is told once, until it is over.
        let told = matches!(seen, Some(Seen::Failed(_))) && failed;
        if let Some(seen) = seen {
            failed = matches!(seen, Seen::Failed(_));
            if !told && news.send((index, seen)).await.is_err() {
                return;
            }
        }
        if news.is_closed() {
            return;
        }
        if let Ok(Some(())) = timeout(LOOK, noticed.recv()).await {
            sleep(SETTLE).await;
        }
    }
}

/// Has `notices` told when something happens in the file's folder: editors and kubelet replace files instead of writing them.
fn watch(path: &Path, notices: mpsc::Sender<()>) -> Result<notify::RecommendedWatcher> {
    let folder = path.parent().context("a file without a folder")?;
    let mut watcher = notify::recommended_watcher(move |_event: notify::Result<notify::Event>| {
        // A notice that waits is enough.
        let _waiting = notices.try_send(());
    })?;
    watcher.watch(folder, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}
