//! Memory that keeps nothing of what was in it.

use std::mem::{MaybeUninit, size_of};
use std::ops::{Deref, DerefMut};

use zeroize::Zeroize;

/// A box whose memory is overwritten with zeros after its content was dropped: for content that
/// holds keys and does not wipe them.
pub(crate) struct WipedBox<T>(Box<MaybeUninit<T>>);

impl<T> WipedBox<T> {
    pub(crate) fn new(content: T) -> Self {
        Self(Box::new(MaybeUninit::new(content)))
    }
}

impl<T> Deref for WipedBox<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: INVARIANT: the content is there from `new` until `drop`.
        unsafe { self.0.assume_init_ref() }
    }
}

impl<T> DerefMut for WipedBox<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`.
        unsafe { self.0.assume_init_mut() }
    }
}

impl<T> Drop for WipedBox<T> {
    fn drop(&mut self) {
        // SAFETY: the content is there, and nothing reads it afterwards.
        unsafe { self.0.assume_init_drop() };
        let bytes = self.0.as_mut_ptr().cast::<MaybeUninit<u8>>();
        // SAFETY: the box's own memory, borrowed mutably, as bytes that need not be initialised.
        unsafe { std::slice::from_raw_parts_mut(bytes, size_of::<T>()) }.zeroize();
    }
}

/// Overwrites the part of the stack that the caller's callees have used: keys are derived in local
/// variables and moved through them.
#[inline(never)]
pub(crate) fn wipe_stack() {
    let mut area = [MaybeUninit::<u8>::uninit(); 24 * 1024];
    area.zeroize();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    #[test]
    fn content_is_used_and_dropped_once() {
        let counted = Rc::new(());
        let mut boxed = WipedBox::new((Rc::clone(&counted), 1));
        boxed.1 += 1;
        assert_eq!(boxed.1, 2);
        assert_eq!(Rc::strong_count(&counted), 2);
        drop(boxed);
        assert_eq!(Rc::strong_count(&counted), 1);
    }
}
