//! Typed handles and the arenas that they index.
//!
//! Invariant: an `Id<T>` is only made by the `Arena<T>` that owns the entry, and entries are never removed, so
//! indexing with a handle of the same arena cannot fail.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::ops::{Index, IndexMut};

/// A handle to an entry of an [`Arena<T>`].
pub struct Id<T> {
    index: u32,
    entry: PhantomData<fn() -> T>,
}

impl<T> Id<T> {
    /// The handle with this position; the text parsers make them before the entry exists.
    pub fn from_index(index: usize) -> Self {
        Id { index: u32::try_from(index).unwrap_or(u32::MAX), entry: PhantomData }
    }

    /// The position of the entry in its arena.
    pub fn index(self) -> usize {
        self.index as usize
    }
}

impl<T> Clone for Id<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Id<T> {}
impl<T> PartialEq for Id<T> {
    fn eq(&self, other: &Self) -> bool {
        self.index == other.index
    }
}
impl<T> Eq for Id<T> {}
impl<T> PartialOrd for Id<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> Ord for Id<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.index.cmp(&other.index)
    }
}
impl<T> Hash for Id<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.index.hash(state);
    }
}
impl<T> fmt::Debug for Id<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "%{}", self.index)
    }
}
impl<T> fmt::Display for Id<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "%{}", self.index)
    }
}

/// Entries of one kind, addressed by [`Id<T>`] in the order in which they were pushed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Arena<T> {
    entries: Vec<T>,
}

impl<T> Default for Arena<T> {
    fn default() -> Self {
        Arena { entries: Vec::new() }
    }
}

impl<T> Arena<T> {
    /// Adds an entry and returns its handle.
    pub fn push(&mut self, entry: T) -> Id<T> {
        self.entries.push(entry);
        Id::from_index(self.entries.len() - 1)
    }

    /// The entry, or nothing where the handle belongs to a larger arena.
    pub fn get(&self, id: Id<T>) -> Option<&T> {
        self.entries.get(id.index())
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All handles, in order.
    pub fn ids(&self) -> impl ExactSizeIterator<Item = Id<T>> + use<T> {
        (0..self.entries.len()).map(Id::from_index)
    }

    /// All handles with their entries, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (Id<T>, &T)> {
        self.entries.iter().enumerate().map(|(i, e)| (Id::from_index(i), e))
    }
}

impl<T> Index<Id<T>> for Arena<T> {
    type Output = T;
    fn index(&self, id: Id<T>) -> &T {
        &self.entries[id.index()]
    }
}
impl<T> IndexMut<Id<T>> for Arena<T> {
    fn index_mut(&mut self, id: Id<T>) -> &mut T {
        &mut self.entries[id.index()]
    }
}
