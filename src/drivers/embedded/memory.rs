//! Paged memory with versions. Owns: a guest's pages, lazily allocated, and how often each was written.
//! Always: version 0 means never written, zeros, and is never sent. Not here: what is written (`program.rs`).

use crate::types::limits::PAGE_BYTES;
use crate::types::units::MIB;

/// Pages in a chunk of 1 MiB, the unit of allocation.
pub const CHUNK_PAGES: usize = MIB as usize / PAGE_BYTES;

struct Chunk {
    bytes: Box<[u8]>,
    versions: [u32; CHUNK_PAGES],
    /// The window of the dirty-rate meter in which a page was last written, plus one.
    windows: [u32; CHUNK_PAGES],
}

/// Memory of one guest.
#[derive(Default)]
pub struct Memory {
    chunks: Vec<Option<Box<Chunk>>>,
    resident: u64,
    rewritten: u64,
}

/// The version after `version`; never 0, which means never written.
pub fn next_version(version: u32) -> u32 {
    version.wrapping_add(1).max(1)
}

fn place(page: u64) -> (usize, usize) {
    let page = usize::try_from(page).expect("a page number fits the address space");
    (page / CHUNK_PAGES, page % CHUNK_PAGES)
}

impl Memory {
    /// Memory of which nothing was written.
    pub fn new() -> Memory {
        Memory::default()
    }

    fn chunk(&mut self, index: usize) -> &mut Chunk {
        if self.chunks.len() <= index {
            self.chunks.resize_with(index + 1, || None);
        }
        self.chunks[index].get_or_insert_with(|| {
            Box::new(Chunk {
                bytes: vec![0; MIB as usize].into_boxed_slice(),
                versions: [0; CHUNK_PAGES],
                windows: [0; CHUNK_PAGES],
            })
        })
    }

    /// Rewrites a page in place. Returns whether it is the first write of this page in `window`.
    pub fn write(&mut self, page: u64, window: u32, fill: impl FnOnce(&mut [u8])) -> bool {
        let (at, within) = place(page);
        let chunk = self.chunk(at);
        fill(&mut chunk.bytes[within * PAGE_BYTES..(within + 1) * PAGE_BYTES]);
        let version = &mut chunk.versions[within];
        let before = *version;
        *version = next_version(before);
        let first = chunk.windows[within] != window.wrapping_add(1);
        chunk.windows[within] = window.wrapping_add(1);
        self.count(before, next_version(before));
        first
    }

    fn count(&mut self, before: u32, after: u32) {
        self.resident += u64::from(before == 0 && after > 0);
        self.rewritten += u64::from(before < 2 && after >= 2);
    }

    /// Takes over pages from `first` on as another host had them. They must lie in one chunk.
    /// Returns how many of them were here in exactly this version already.
    pub fn store(&mut self, first: u64, versions: &[u32], bytes: &[u8]) -> u64 {
        let (at, within) = place(first);
        assert!(within + versions.len() <= CHUNK_PAGES && bytes.len() == versions.len() * PAGE_BYTES);
        let chunk = self.chunk(at);
        chunk.bytes[within * PAGE_BYTES..][..bytes.len()].copy_from_slice(bytes);
        let mut counted = Vec::new();
        let mut had = 0;
        for (mine, theirs) in chunk.versions[within..].iter_mut().zip(versions) {
            had += u64::from(*mine == *theirs);
            if *mine < 2 {
                counted.push((*mine, *theirs));
            }
            *mine = *theirs;
        }
        for (before, after) in counted {
            self.count(before, after);
        }
        had
    }

    /// How often `page` was written.
    pub fn version(&self, page: u64) -> u32 {
        let (at, within) = place(page);
        self.chunks.get(at).and_then(Option::as_ref).map_or(0, |chunk| chunk.versions[within])
    }

    /// Versions of the chunk with this index, if any of its pages was written.
    pub fn chunk_versions(&self, index: usize) -> Option<&[u32; CHUNK_PAGES]> {
        self.chunks.get(index)?.as_ref().map(|chunk| &chunk.versions)
    }

    /// Bytes of `count` pages from `first` on, which lie in one chunk; `None` if none of that chunk was written.
    pub fn pages(&self, first: u64, count: usize) -> Option<&[u8]> {
        let (at, within) = place(first);
        let chunk = self.chunks.get(at)?.as_ref()?;
        chunk.bytes.get(within * PAGE_BYTES..(within + count) * PAGE_BYTES)
    }

    /// One more than the highest chunk ever written.
    pub fn chunks_len(&self) -> usize {
        self.chunks.len()
    }

    /// The bytes of a chunk; `None` for zeros.
    pub fn chunk_bytes(&self, index: usize) -> Option<&[u8]> {
        self.chunks.get(index)?.as_ref().map(|chunk| &*chunk.bytes)
    }

    /// Pages that were ever written.
    pub fn resident_pages(&self) -> u64 {
        self.resident
    }

    /// Pages that were written more than once.
    pub fn rewritten_pages(&self) -> u64 {
        self.rewritten
    }
}
