//! The one allocation of a model on a device.
//!
//! Invariant: every slot of the plan that is not held by the host lies in it, aligned as kernels expect, and two slots
//! overlap only where the plan's arena says so.

use super::{CudaError, Device, meaning};
use cudarc::driver::{CudaSlice, DevicePtr, result};
use kiln_ir::plan::{MOST_BYTES, Place, Plan, SlotId};

/// Where sections, inputs and outputs begin: what the driver aligns allocations to.
const ALIGNMENT: u64 = 256;

/// Where slots lie, in bytes from the beginning.
pub(super) struct Layout {
    /// For each slot its first byte and its length; nothing for those that the host holds.
    slots: Vec<Option<(u64, usize)>>,
    /// The weights section.
    pub weights: u64,
    /// The first byte of the inputs; the outputs follow, then the status.
    pub inputs: u64,
    /// The first byte of the outputs.
    pub outputs: u64,
    /// One u32 for each step.
    pub status: u64,
    /// Of all.
    pub bytes: u64,
}

impl Layout {
    /// Lays out a plan of fixed dims.
    pub fn of(plan: &Plan) -> Result<Layout, CudaError> {
        let absurd = || CudaError::Inconsistent("the plan's sizes are too large for any memory".into());
        let after = |at: u64, bytes: u64| {
            let end = at.checked_add(bytes).and_then(|e| e.checked_next_multiple_of(ALIGNMENT));
            end.filter(|e| *e < MOST_BYTES as u64).ok_or_else(absurd)
        };
        let weights = after(0, plan.arena_bytes)?;
        let inputs = after(weights, plan.weight_bytes)?;
        let mut slots: Vec<Option<(u64, usize)>> = vec![None; plan.slots.len()];
        let mut place = |id: SlotId, at: u64, bytes: u64| -> Result<(), CudaError> {
            if let Some(slot) = slots.get_mut(id.index()) {
                *slot = Some((at, usize::try_from(bytes).map_err(|_| absurd())?));
            }
            Ok(())
        };
        for (id, slot) in plan.slots.iter() {
            let bytes = plan.slot_bytes(id);
            let (first, at, section) = match slot.place {
                Place::Arena(at) => (0, at, plan.arena_bytes),
                Place::Weights(at) => (weights, at, plan.weight_bytes),
                Place::Input(_) | Place::Output(_) | Place::Region(_) | Place::Host => continue,
            };
            let inside = at.checked_add(bytes).is_some_and(|end| end <= section);
            place(id, first + inside.then_some(at).ok_or_else(absurd)?, bytes)?;
        }
        // Inputs beside one another, and outputs, so that each are one copy.
        let mut next = inputs;
        let mut outputs = inputs;
        for of_inputs in [true, false] {
            outputs = next;
            for (id, slot) in plan.slots.iter() {
                let wanted = match slot.place {
                    Place::Input(_) => of_inputs,
                    Place::Output(_) | Place::Region(_) => !of_inputs,
                    Place::Arena(_) | Place::Weights(_) | Place::Host => false,
                };
                if wanted {
                    place(id, next, plan.slot_bytes(id))?;
                    next = after(next, plan.slot_bytes(id))?;
                }
            }
        }
        let status = next;
        let bytes = after(status, 4 * plan.steps.len() as u64)?;
        Ok(Layout { slots, weights, inputs, outputs, status, bytes: bytes.max(ALIGNMENT) })
    }

    /// A slot's first byte and length, where it is on the device.
    pub fn slot(&self, slot: SlotId) -> Option<(u64, usize)> {
        self.slots.get(slot.index()).copied().flatten()
    }
}

/// Memory of the device.
pub(super) struct Memory {
    slice: CudaSlice<u8>,
}

impl Memory {
    /// Allocates so many bytes, if the device has them.
    pub fn new(device: &Device, needed: u64) -> Result<Memory, CudaError> {
        let fails = |e| CudaError::Driver { doing: "allocates memory", what: meaning(e) };
        let (free, total) = device.context.mem_get_info().map_err(fails)?;
        let (free, total) = (free as u64, total as u64);
        let too_small = CudaError::Memory { needed, free, total };
        let Some(len) = usize::try_from(needed).ok().filter(|_| needed <= free) else { return Err(too_small) };
        // SAFETY: bytes have no invalid values, and the plan's verifier has seen that every slot is written before it
        // is read.
        match unsafe { device.stream.alloc::<u8>(len) } {
            Ok(slice) => Ok(Memory { slice }),
            Err(e) if e.0 as u32 == 2 => Err(too_small),
            Err(e) => Err(fails(e)),
        }
    }

    /// The address of a byte.
    pub fn address(&self, at: u64) -> u64 {
        let (base, _nothing_to_wait_for) = self.slice.device_ptr(self.slice.stream());
        base + at
    }

    fn checked(&self, at: u64, bytes: usize) -> Result<u64, CudaError> {
        let inside = at.checked_add(bytes as u64).is_some_and(|end| end <= self.slice.len() as u64);
        let outside = || CudaError::Inconsistent(format!("{bytes} bytes at {at} are outside of the model's memory"));
        inside.then(|| self.address(at)).ok_or_else(outside)
    }

    /// Waits for everything that was begun.
    pub fn wait(&self) -> Result<(), CudaError> {
        let fails = |e| CudaError::Driver { doing: "runs kernels", what: meaning(e) };
        self.slice.stream().synchronize().map_err(fails)
    }

    /// Copies bytes to the device. Pageable ones are not read any more after the call, pinned ones once the stream was
    /// waited for.
    pub fn upload(&self, at: u64, bytes: &[u8]) -> Result<(), CudaError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let to = self.checked(at, bytes.len())?;
        // SAFETY: the target was checked to be inside the allocation. The driver copies pageable memory before it returns.
        unsafe { result::memcpy_htod_async(to, bytes, self.slice.stream().cu_stream()) }
            .map_err(|e| CudaError::Driver { doing: "copies to the GPU", what: meaning(e) })
    }

    /// Copies bytes from the device, once everything that was begun before is done.
    pub fn download(&self, at: u64, bytes: &mut [u8]) -> Result<(), CudaError> {
        let fails = |e| CudaError::Driver { doing: "runs kernels", what: meaning(e) };
        if !bytes.is_empty() {
            let from = self.checked(at, bytes.len())?;
            // SAFETY: the source was checked to be inside the allocation, and the target stays borrowed until the stream
            // has been waited for, which is next.
            unsafe { result::memcpy_dtoh_async(bytes, from, self.slice.stream().cu_stream()) }.map_err(fails)?;
        }
        self.wait()
    }

    /// Copies within the device.
    pub fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), CudaError> {
        if bytes == 0 {
            return Ok(());
        }
        let (from, to) = (self.checked(from, bytes)?, self.checked(to, bytes)?);
        // SAFETY: both ends were checked to be inside the allocation.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.slice.stream().cu_stream()) }
            .map_err(|e| CudaError::Driver { doing: "copies on the GPU", what: meaning(e) })
    }

    /// Writes zeros.
    pub fn clear(&self, at: u64, bytes: usize) -> Result<(), CudaError> {
        if bytes == 0 {
            return Ok(());
        }
        let to = self.checked(at, bytes)?;
        // SAFETY: the target was checked to be inside the allocation.
        unsafe { result::memset_d8_async(to, 0, bytes, self.slice.stream().cu_stream()) }
            .map_err(|e| CudaError::Driver { doing: "clears memory", what: meaning(e) })
    }
}
