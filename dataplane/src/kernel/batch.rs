//! Many elements in one system call: writes, removals and whole-map reads.

use bulkhead_verdict::layout as l;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{KernelError, maps::Table, sys};

/// Elements per call: few enough that the kernel does not hold a bucket's lock or the CPU for long.
const CHUNK: usize = 512;
/// A hash whose bucket does not fit a read buffer refuses it; the buffer is then doubled, up to this many elements.
const CHUNK_MAX: usize = CHUNK << 6;

fn count(elements: usize) -> u32 {
    u32::try_from(elements).unwrap_or(u32::MAX)
}

impl<K: IntoBytes + Immutable + Clone, V: IntoBytes + Immutable + Clone> Table<K, V> {
    /// Writes elements in order. On error those before the failed one are written.
    pub(crate) fn set_all(&self, elements: &[(K, V)]) -> Result<(), KernelError> {
        for chunk in elements.chunks(CHUNK) {
            if let [(key, value)] = chunk {
                self.set(key, value)?;
                continue;
            }
            let (keys, values): (Vec<K>, Vec<V>) = chunk.iter().cloned().unzip();
            sys::update_batch(self.fd(), keys.as_bytes(), values.as_bytes(), count(chunk.len()))
                .map_err(|(_, source)| source)
                .map_err(self.error("writing elements of"))?;
        }
        Ok(())
    }
}

impl<K: IntoBytes + Immutable + Clone, V: FromBytes> Table<K, V> {
    /// Removes elements; absent ones are no error (a flow may have gone by itself).
    pub(crate) fn remove_all(&self, keys: &[K]) -> Result<(), KernelError> {
        // Tries have no batched removal worth the name: the kernel walks the same path either way.
        if self.is_trie() {
            return keys.iter().try_for_each(|key| self.remove(key).map(drop));
        }
        for chunk in keys.chunks(CHUNK) {
            let mut rest = chunk;
            while !rest.is_empty() {
                let Err((done, error)) = sys::delete_batch(self.fd(), rest.as_bytes(), count(rest.len())) else {
                    break;
                };
                if error.raw_os_error() != Some(libc::ENOENT) {
                    return Err(self.error("removing elements of")(error));
                }
                // The one after the `done` first is absent: step over it.
                let skip = usize::try_from(done).unwrap_or(usize::MAX).saturating_add(1);
                rest = rest.get(skip..).unwrap_or_default();
            }
        }
        Ok(())
    }
}

impl<K: FromBytes, V: FromBytes> Table<K, V> {
    /// Calls `each` for every element there is. While the kernel writes, an element that moves may be missed or met twice.
    pub(crate) fn for_each(&self, mut each: impl FnMut(K, V)) -> Result<(), KernelError> {
        let mut token = None;
        let mut chunk = CHUNK;
        while !self.slice(&mut token, &mut chunk, &mut each)? {}
        Ok(())
    }

    /// Calls `each` for at most `chunk` elements from a place on, which moves; `true` with the last ones. What was asked for rises
    /// where a bucket has more.
    pub(super) fn slice(
        &self,
        token: &mut Option<sys::Token>,
        chunk: &mut usize,
        each: &mut impl FnMut(K, V),
    ) -> Result<bool, KernelError> {
        loop {
            let mut keys = vec![0_u8; *chunk * size_of::<K>()];
            let mut values = vec![0_u8; *chunk * size_of::<V>()];
            let before = *token;
            let (read, last) = match sys::lookup_batch(self.fd(), token, &mut keys, &mut values, count(*chunk)) {
                Ok(read) => read,
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && *chunk < CHUNK_MAX => {
                    (*chunk, *token) = (*chunk * 2, before);
                    continue;
                }
                Err(error) => return Err(self.error("reading all of")(error)),
            };
            let elements = keys
                .chunks_exact(size_of::<K>())
                .zip(values.chunks_exact(size_of::<V>()));
            for (key, value) in elements.take(usize::try_from(read).unwrap_or(usize::MAX)) {
                let (Ok(key), Ok(value)) = (K::read_from_bytes(key), V::read_from_bytes(value)) else {
                    continue;
                };
                each(key, value);
            }
            return Ok(last);
        }
    }
}

impl Table<u32, l::Counter> {
    /// Zero everywhere.
    pub(crate) fn clear(&self) -> Result<(), KernelError> {
        let zero = vec![0_u8; size_of::<l::Counter>() * possible_cpus()?];
        (0..self.limit()).try_for_each(|index| {
            sys::update(self.fd(), index.as_bytes(), &zero).map_err(self.error("writing an element of"))
        })
    }

    /// Sums of a per-CPU array over the CPUs, by index.
    pub(crate) fn sums(&self) -> Result<Vec<l::Counter>, KernelError> {
        let mut sums = Vec::new();
        let mut values = vec![0_u8; size_of::<l::Counter>() * possible_cpus()?];
        for index in 0..self.limit() {
            let mut sum = l::Counter::default();
            if sys::lookup(self.fd(), index.as_bytes(), &mut values).map_err(self.error("reading an element of"))? {
                for value in values.chunks_exact(size_of::<l::Counter>()) {
                    let Ok(counter) = l::Counter::read_from_bytes(value) else {
                        continue;
                    };
                    sum.packets = sum.packets.wrapping_add(counter.packets);
                    sum.bytes = sum.bytes.wrapping_add(counter.bytes);
                }
            }
            sums.push(sum);
        }
        Ok(sums)
    }
}

/// CPUs a per-CPU element has a value for.
pub(crate) fn possible_cpus() -> Result<usize, KernelError> {
    aya::util::nr_cpus().map_err(|(path, source)| KernelError::Pin {
        path: path.into(),
        source,
    })
}
