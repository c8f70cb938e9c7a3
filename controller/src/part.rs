//! One node's part of a world, and the difference of two such parts.

use std::sync::Arc;

use bulkhead_policy::{
    digest::Digest,
    state::{Delta, State},
};
use bulkhead_proto::state_digest::StateDigest;

use crate::world::{Local, World};

/// What a node is to hold. Cheap to clone; parts of one world share what is shared.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    shared: Arc<State>,
    shared_digest: StateDigest,
    local: Local,
}

impl Part {
    /// The node's part of a world; a node without endpoints has the shared part only.
    pub(crate) fn of(world: &World, node: &str) -> Self {
        let local = world.locals.get(node).cloned().unwrap_or_default();
        Self {
            shared: Arc::clone(&world.shared),
            shared_digest: world.shared_digest,
            local,
        }
    }

    /// Digest of the whole part, as the node computes it.
    pub(crate) fn digest(&self) -> Digest {
        self.shared_digest.plus(self.local.digest).digest()
    }

    /// What turns `old` into this part, which is of `world`. `None` = everything.
    pub(crate) fn since(&self, old: Option<&Self>, world: &World) -> Delta {
        let nothing = State::default();
        let (mut delta, local) = match old {
            None => (
                Delta::between(&nothing, &self.shared),
                Delta::between(&nothing, &self.local.state),
            ),
            Some(old) => (world.shared_since(&old.shared), self.local.since(&old.local.state)),
        };
        delta.upserts.extend(local.upserts);
        delta.removes.extend(local.removes);
        delta
    }

    /// Endpoints in it.
    pub(crate) fn endpoints(&self) -> usize {
        self.local.state.endpoints.len()
    }

    /// Policies its rulesets come from; one may come several times.
    pub(crate) fn policies(&self) -> impl Iterator<Item = &str> {
        self.local
            .state
            .rulesets
            .values()
            .flat_map(|ruleset| ruleset.policies.iter().map(String::as_str))
    }
}
