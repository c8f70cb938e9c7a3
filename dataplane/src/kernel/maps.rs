//! The pinned maps: which there are, what an element of each must look like, and a typed handle on one.

use std::{
    fmt, io,
    marker::PhantomData,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use bulkhead_verdict::{
    address::Address,
    dns::{stream::Stream, table as n},
    layout as l,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{
    KernelError,
    sys::{self, map_type},
    uplink,
};

/// What a map must be like for this build to read and write it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spec {
    /// Name in the object and under the pin folder.
    pub(crate) name: &'static str,
    kind: u32,
    key: usize,
    value: usize,
}

pub(super) const fn spec<K, V>(name: &'static str, kind: u32) -> Spec {
    Spec {
        name,
        kind,
        key: size_of::<K>(),
        value: size_of::<V>(),
    }
}

/// Every map that is pinned. `BK_SCRATCH` is not: it is working memory, and a new build may want more of it.
pub(crate) const MAPS: [Spec; 30] = [
    spec::<u32, u32>("BK_DEVICE", map_type::HASH),
    spec::<u32, l::EndpointWord>("BK_ENDPOINT", map_type::ARRAY),
    spec::<u32, l::Config>("BK_CONFIG", map_type::ARRAY),
    spec::<l::AddressKey, l::AddressEntry>("BK_ADDRESS", map_type::HASH),
    spec::<Address, u32>("BK_OWN", map_type::HASH),
    spec::<NetworkPrefix, l::NetworkEntry>("BK_NETWORK", map_type::LPM_TRIE),
    spec::<l::RuleKey, l::PortSet>("BK_RULE", map_type::HASH),
    spec::<u32, l::Range>("BK_RANGE", map_type::ARRAY),
    spec::<u32, l::Alternative>("BK_ALT", map_type::ARRAY),
    spec::<l::LeaseKey, u64>("BK_LEASE", map_type::HASH),
    spec::<u32, u64>("BK_EXPIRY", map_type::ARRAY),
    spec::<l::NameKey, u64>("BK_NAME", map_type::HASH),
    spec::<l::FlowKey, l::Flow>("BK_CONFIRMED", map_type::HASH),
    spec::<l::FlowKey, l::Flow>("BK_TENTATIVE", map_type::LRU_HASH),
    spec::<l::FragmentKey, l::FragmentEntry>("BK_FRAGMENT", map_type::LRU_HASH),
    spec::<u32, u64>("BK_ANSWER", map_type::ARRAY),
    spec::<u32, l::Quota>("BK_QUOTA", map_type::ARRAY),
    spec::<l::DenyKey, l::DenyEntry>("BK_DENY", map_type::HASH),
    spec::<(), ()>("BK_EVENT", map_type::RINGBUF),
    spec::<u32, l::Counter>("BK_STATS", map_type::PERCPU_ARRAY),
    spec::<u32, u32>("BK_EPOCH", map_type::ARRAY),
    spec::<u32, u32>("BK_PEER_EPOCH", map_type::ARRAY),
    spec::<u32, u64>("BK_SEQUENCE", map_type::PERCPU_ARRAY),
    spec::<l::InternKey, l::InternEntry>("BK_INTERN", map_type::HASH),
    spec::<u32, n::Naming>("BK_NAMING", map_type::ARRAY),
    spec::<PatternKey, n::PatternEntry>("BK_PATTERN", map_type::LPM_TRIE),
    spec::<n::MemberKey, u32>("BK_MEMBER", map_type::HASH),
    spec::<n::BucketKey, n::LearnedBucket>("BK_LEARNED", map_type::HASH),
    spec::<n::BucketKey, n::PendingBucket>("BK_PENDING", map_type::HASH),
    spec::<n::BucketKey, Stream>("BK_STREAM", map_type::HASH),
];

/// Key of `BK_NETWORK`: the trie wants the number of significant bits in front of the data.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct NetworkPrefix {
    /// Significant bits of `key`, the 32 of the zone included.
    pub(crate) bits: u32,
    /// The prefix.
    pub(crate) key: l::NetworkKey,
}

/// Key of `BK_PATTERN`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct PatternKey {
    /// Significant bits of `name`.
    pub(crate) bits: u32,
    /// The domain, reversed; zeroes behind it.
    pub(crate) name: [u8; n::KEY_BYTES],
}

impl Spec {
    /// Refuses a map that this build would misread.
    pub(super) fn check(&self, map: BorrowedFd<'_>, place: &Path) -> Result<(), KernelError> {
        let found = sys::map_info(map).map_err(|source| KernelError::Map {
            map: self.name,
            doing: "asking about",
            source,
        })?;
        let same = found.kind == self.kind
            && usize::try_from(found.key_size).is_ok_and(|size| size == self.key)
            && usize::try_from(found.value_size).is_ok_and(|size| size == self.value);
        if same {
            return Ok(());
        }
        Err(KernelError::WrongMap {
            map: self.name,
            place: place.to_path_buf(),
            wanted: format!(
                "type {} with {}-byte keys and {}-byte values",
                self.kind, self.key, self.value
            ),
            found: format!(
                "type {} with {}-byte keys and {}-byte values",
                found.kind, found.key_size, found.value_size
            ),
        })
    }
}

/// Checks the pins that exist already, before a program that would use them is loaded. True if there were any.
pub(crate) fn check_pins(folder: &Path) -> Result<bool, KernelError> {
    let mut any = false;
    for spec in &MAPS {
        let path = folder.join(spec.name);
        match sys::open(&path) {
            Ok(map) => {
                any = true;
                spec.check(map.as_fd(), &path)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(KernelError::Pin { path, source }),
        }
    }
    Ok(any)
}

/// An element that was taken out.
#[derive(Debug)]
pub(crate) struct Taken<V> {
    pub(crate) value: V,
    /// As the kernel had it: values with shared words cannot be turned back into bytes.
    bytes: Vec<u8>,
}

/// A map whose key and value sizes have been checked against `K` and `V`.
pub(crate) struct Table<K, V> {
    name: &'static str,
    map: Arc<OwnedFd>,
    limit: u32,
    kind: u32,
    types: PhantomData<fn(K) -> V>,
}

impl<K, V> Clone for Table<K, V> {
    fn clone(&self) -> Self {
        Self {
            map: self.map.clone(),
            types: PhantomData,
            ..*self
        }
    }
}

impl<K, V> fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl<K, V> Table<K, V> {
    /// A handle on the map `name`, which must be in [`MAPS`] or [`uplink::MAPS`] with these types.
    pub(crate) fn new(name: &'static str, map: OwnedFd, folder: &Path) -> Result<Self, KernelError> {
        let Some(spec) = MAPS.iter().chain(&uplink::MAPS).find(|spec| spec.name == name) else {
            return Err(KernelError::MissingMap { map: name });
        };
        if spec.key != size_of::<K>() || spec.value != size_of::<V>() {
            return Err(KernelError::MissingMap { map: name });
        }
        spec.check(map.as_fd(), folder)?;
        let info = sys::map_info(map.as_fd()).map_err(|source| KernelError::Map {
            map: name,
            doing: "asking about",
            source,
        })?;
        Ok(Self {
            name,
            map: Arc::new(map),
            limit: info.max_entries,
            kind: info.kind,
            types: PhantomData,
        })
    }

    /// Name of the map.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// How many elements fit.
    pub(crate) fn limit(&self) -> u32 {
        self.limit
    }

    /// True for a longest-prefix trie.
    pub(super) fn is_trie(&self) -> bool {
        self.kind == map_type::LPM_TRIE
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }

    pub(super) fn error(&self, doing: &'static str) -> impl FnOnce(io::Error) -> KernelError + use<K, V> {
        let map = self.name;
        move |source| KernelError::Map { map, doing, source }
    }
}

impl<K: IntoBytes + Immutable, V: FromBytes> Table<K, V> {
    /// The element of a key.
    pub(crate) fn get(&self, key: &K) -> Result<Option<V>, KernelError> {
        let mut value = vec![0_u8; size_of::<V>()];
        let found = sys::lookup(self.fd(), key.as_bytes(), &mut value).map_err(self.error("reading an element of"))?;
        Ok(if found { V::read_from_bytes(&value).ok() } else { None })
    }

    /// Reads and removes the element of a key in one step of the kernel's.
    pub(crate) fn take(&self, key: &K) -> Result<Option<Taken<V>>, KernelError> {
        let mut bytes = vec![0_u8; size_of::<V>()];
        let found = sys::lookup_and_delete(self.fd(), key.as_bytes(), &mut bytes)
            .map_err(self.error("taking an element of"))?;
        let value = V::read_from_bytes(&bytes).ok();
        Ok(if found {
            value.map(|value| Taken { value, bytes })
        } else {
            None
        })
    }

    /// Puts back what was taken out by mistake, unless the key is in use again.
    pub(crate) fn put_back(&self, key: &K, taken: &Taken<V>) -> Result<(), KernelError> {
        sys::insert(self.fd(), key.as_bytes(), &taken.bytes).map_err(self.error("putting back an element of"))
    }

    /// Adds the element of a key, unless there is one.
    pub(crate) fn add(&self, key: &K, mut value: V) -> Result<(), KernelError>
    where
        V: IntoBytes,
    {
        sys::insert(self.fd(), key.as_bytes(), value.as_mut_bytes()).map_err(self.error("adding an element to"))
    }

    /// Removes the element of a key; false when there was none.
    pub(crate) fn remove(&self, key: &K) -> Result<bool, KernelError> {
        sys::delete(self.fd(), key.as_bytes()).map_err(self.error("removing an element of"))
    }
}

impl<K: IntoBytes + Immutable, V: IntoBytes + Immutable> Table<K, V> {
    /// Writes the element of a key: a reader in the kernel sees the old value or the new one, an 8-byte value never torn.
    pub(crate) fn set(&self, key: &K, value: &V) -> Result<(), KernelError> {
        sys::update(self.fd(), key.as_bytes(), value.as_bytes()).map_err(self.error("writing an element of"))
    }
}
