//! Confirms changes of the node's own rules: by a new connection to the controller, through the rules as they are now.

use std::{sync::mpsc::SyncSender, time::Duration};

use anyhow::{Context, Result};
use tokio::{
    net::{TcpStream, UnixStream},
    sync::watch,
    time::{sleep, timeout},
};

use crate::{
    stream::Address,
    sync::{Holding, Input},
    tls::Tls,
};

/// Longest time of one attempt.
const ATTEMPT: Duration = Duration::from_secs(3);
/// Pause before the next.
const PAUSE: Duration = Duration::from_millis(250);

/// What has to be reached.
pub(crate) struct Confirming {
    pub(crate) controller: Address,
    pub(crate) tls: Tls,
    /// Further places, `HOST:PORT`.
    pub(crate) also: Vec<String>,
    pub(crate) holding: watch::Receiver<Holding>,
    pub(crate) sync: SyncSender<Input>,
}

impl Confirming {
    /// Tries for each trial until everything is reached, or it is over. Ends with the sync thread.
    pub(crate) async fn run(mut self) {
        let mut done = 0;
        loop {
            let trial = self.holding.borrow_and_update().trial.filter(|trial| *trial != done);
            let Some(trial) = trial else {
                if self.holding.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
                continue;
            };
            match timeout(ATTEMPT, self.reach()).await {
                Ok(Ok(())) if self.sync.try_send(Input::Confirmed(trial)).is_ok() => done = trial,
                Ok(Ok(())) => tracing::debug!("the sync thread is busy"),
                Ok(Err(error)) => tracing::info!("the node's rules are not confirmed yet: {error:#}"),
                Err(_) => tracing::info!("the node's rules are not confirmed yet: no answer in {ATTEMPT:?}"),
            }
            sleep(PAUSE).await;
        }
    }

    /// Opens a new connection to everything.
    async fn reach(&self) -> Result<()> {
        match &self.controller {
            Address::Unix(path) => drop(UnixStream::connect(path).await.context("the controller's socket")?),
            Address::Tls(place) => drop(self.tls.channel(place).await.context("the controller")?),
        }
        for place in &self.also {
            drop(TcpStream::connect(place).await.with_context(|| place.clone())?);
        }
        Ok(())
    }
}
