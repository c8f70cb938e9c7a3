//! What nodes announce, for the other replicas: an address is to be known on every node before its pod runs, whichever replica a
//! node is connected to. The API server says it as well, but only when kubelet has told it, and by then the pod has spoken.

use std::{collections::BTreeMap, sync::Arc};

use bulkhead_proto::{update::announcement_bytes, v1};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    engine::Input,
    registry::{NODES_MAX, Registry},
};

/// A message is closed when it has so many bytes; one announcement is some 150 for each pod of a node.
const MESSAGE_BYTES: usize = 1 << 20;

/// The last announcement of each node: of our own ones, and of those that replicas tell of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Board(Arc<watch::Sender<Notices>>);

#[derive(Debug, Default)]
struct Notices {
    /// Of the newest.
    number: u64,
    of: BTreeMap<String, Notice>,
}

#[derive(Debug)]
struct Notice {
    number: u64,
    /// The replica that serves the node; `None` is this one.
    by: Option<String>,
    announcement: v1::Announcement,
}

impl Board {
    /// Puts up what a node announces, in place of what it announced before. The number is for [`Self::take_down`].
    pub(super) fn put_up(&self, by: Option<&str>, node: &str, announcement: v1::Announcement) -> u64 {
        let mut number = 0;
        self.0.send_if_modified(|notices| {
            number = notices.number;
            if notices.of.len() >= NODES_MAX && !notices.of.contains_key(node) {
                return false;
            }
            notices.number += 1;
            number = notices.number;
            let by = by.map(str::to_owned);
            let notice = Notice {
                number,
                by,
                announcement,
            };
            notices.of.insert(node.to_owned(), notice);
            true
        });
        number
    }

    /// Takes an announcement down; does nothing when there is a newer one.
    fn take_down(&self, node: &str, number: u64) {
        self.0.send_if_modified(|notices| {
            if notices.of.get(node).is_some_and(|notice| notice.number == number) {
                notices.of.remove(node);
            }
            // Nobody has to be told.
            false
        });
    }

    /// A reader who is told of everything, and then of what is new.
    pub(super) fn reader(&self) -> Reader {
        Reader {
            notices: self.0.subscribe(),
            read: 0,
        }
    }
}

/// What one node's stream put up. It is taken down when the stream ends: the node may be another replica's from then on.
#[derive(Debug)]
pub(crate) struct Posted {
    board: Board,
    node: String,
    number: u64,
}

impl Posted {
    /// Nothing, to begin with.
    pub(crate) fn new(board: &Board, node: &str) -> Self {
        Self {
            board: board.clone(),
            node: node.to_owned(),
            number: 0,
        }
    }

    /// What the node announces now.
    pub(crate) fn put_up(&mut self, announcement: v1::Announcement) {
        self.number = self.board.put_up(None, &self.node, announcement);
    }
}

impl Drop for Posted {
    fn drop(&mut self) {
        self.board.take_down(&self.node, self.number);
    }
}

/// Somebody who reads the board.
#[derive(Debug)]
pub(super) struct Reader {
    notices: watch::Receiver<Notices>,
    read: u64,
}

impl Reader {
    /// Waits for something new of the nodes of the replicas that `wanted` holds of (`None` is this one), and gives it in messages.
    pub(super) async fn news(&mut self, wanted: impl Fn(Option<&str>) -> bool) -> Vec<Vec<v1::NodeAnnouncement>> {
        loop {
            let new: Vec<v1::NodeAnnouncement> = {
                let notices = self.notices.borrow_and_update();
                let read = std::mem::replace(&mut self.read, notices.number);
                let new = notices.of.iter().filter(|(_, notice)| notice.number > read);
                new.filter(|(_, notice)| wanted(notice.by.as_deref()))
                    .map(|(node, notice)| v1::NodeAnnouncement {
                        node: node.clone(),
                        announcement: Some(notice.announcement.clone()),
                    })
                    .collect()
            };
            if !new.is_empty() {
                return messages(new);
            }
            if self.notices.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

fn messages(announcements: Vec<v1::NodeAnnouncement>) -> Vec<Vec<v1::NodeAnnouncement>> {
    let mut messages = vec![Vec::new()];
    let mut bytes = 0;
    for announcement in announcements {
        if bytes >= MESSAGE_BYTES {
            messages.push(Vec::new());
            bytes = 0;
        }
        bytes += announcement_bytes(&announcement);
        if let Some(message) = messages.last_mut() {
            message.push(announcement);
        }
    }
    messages
}

/// Takes what another replica's node announced as if it had said so here, unless it is connected here: then its own word is newer.
pub(super) async fn learn(registry: &Registry, engine: &mpsc::Sender<Input>, told: v1::NodeAnnouncement) -> bool {
    if registry.serves(&told.node) {
        return false;
    }
    // What is not believed is said to the node by the replica that serves it.
    let (answer, _) = oneshot::channel();
    let input = Input::Announce {
        node: told.node,
        announcement: told.announcement.unwrap_or_default(),
        answer,
    };
    engine.send(input).await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(address: u8) -> v1::Announcement {
        v1::Announcement {
            node_addresses: vec![vec![address]],
            ..v1::Announcement::default()
        }
    }

    #[test]
    fn messages_are_not_too_long() {
        let one = |_| v1::NodeAnnouncement {
            node: "n".repeat(MESSAGE_BYTES / 4),
            ..v1::NodeAnnouncement::default()
        };
        let lengths = messages((0..9).map(one).collect())
            .into_iter()
            .map(|message| message.len());
        assert_eq!(lengths.collect::<Vec<_>>(), [4, 4, 1]);
    }

    async fn read(reader: &mut Reader, not: &str) -> Vec<(String, u8)> {
        let news = reader.news(|by| by != Some(not)).await.concat();
        let told = |news: v1::NodeAnnouncement| (news.node, news.announcement.unwrap().node_addresses[0][0]);
        news.into_iter().map(told).collect()
    }

    #[tokio::test]
    async fn a_reader_gets_everything_then_what_is_new_and_nothing_of_its_own() {
        let board = Board::default();
        board.put_up(None, "n1", said(1));
        board.put_up(Some("b"), "n2", said(2));
        board.put_up(Some("c"), "n3", said(3));
        let mut reader = board.reader();
        assert_eq!(
            read(&mut reader, "b").await,
            [("n1".to_owned(), 1), ("n3".to_owned(), 3)]
        );
        let mut posted = Posted::new(&board, "n1");
        posted.put_up(said(4));
        assert_eq!(read(&mut reader, "b").await, [("n1".to_owned(), 4)]);
        // The node is another replica's now, and only then its stream here ends: only the newer word is told of.
        board.put_up(Some("c"), "n1", said(5));
        drop(posted);
        assert_eq!(read(&mut reader, "b").await, [("n1".to_owned(), 5)]);
        assert_eq!(read(&mut board.reader(), "c").await, [("n2".to_owned(), 2)]);
        let mut posted = Posted::new(&board, "n2");
        posted.put_up(said(6));
        drop(posted);
        assert_eq!(read(&mut board.reader(), "").await.len(), 2, "n2 is nobody's");
    }
}
