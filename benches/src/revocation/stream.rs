//! One flow of datagrams that say when they left; the last of them to arrive is what is asked for.

use std::{
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use bulkhead_testbed::process::until;
use rustix::time::{ClockId, clock_gettime};

use crate::bed::Bed;

/// Long enough for a loaded machine.
const SOON: Duration = Duration::from_secs(10);

/// One in so many datagrams is answered.
const ANSWERED: u32 = 64;

/// `CLOCK_MONOTONIC`, nanoseconds.
pub(crate) fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// From the client to web, as fast as one thread sends.
pub(crate) struct Stream {
    /// When the last datagram that arrived had left.
    last: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Stream {
    pub(crate) fn start(bed: &Bed) -> Result<Self> {
        let (from, to) = (bed.client(), bed.web());
        let target = (to.v4, bed.port());
        let receiver = to.netns.inside(move || UdpSocket::bind(target))?.context("listening")?;
        let sender = from.netns.inside(move || {
            let socket = UdpSocket::bind(("0.0.0.0", 0))?;
            socket.connect(target)?;
            Ok::<_, std::io::Error>(socket)
        })?;
        let sender = sender.context("connecting")?;
        receiver.set_read_timeout(Some(Duration::from_millis(100)))?;
        let (last, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (arrived, ended) = (Arc::clone(&last), Arc::clone(&stop));
        let receiving = thread::spawn(move || {
            let (mut word, mut count) = ([0; 8], 0_u32);
            while !ended.load(Ordering::Relaxed) {
                let Ok((_, from)) = receiver.recv_from(&mut word) else {
                    continue;
                };
                arrived.fetch_max(u64::from_ne_bytes(word), Ordering::Relaxed);
                count = count.wrapping_add(1);
                if count % ANSWERED == 1 {
                    // Conntrack calls established what was answered.
                    let _lost = receiver.send_to(b"heard", from);
                }
            }
        });
        let ended = Arc::clone(&stop);
        let sending = thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                // What is refused is what is looked for.
                let _refused = sender.send(&now().to_ne_bytes());
            }
        });
        Ok(Self {
            last,
            stop,
            threads: vec![receiving, sending],
        })
    }

    /// Waits until datagrams arrive.
    pub(crate) fn runs(&self) -> Result<()> {
        let begin = now();
        let arrives = || (self.last() > begin + 2_000_000).then_some(());
        until(SOON, arrives).context("no datagram arrives though it is allowed")
    }

    pub(crate) fn last(&self) -> u64 {
        self.last.load(Ordering::Relaxed)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so.
            let _result = thread.join();
        }
    }
}
