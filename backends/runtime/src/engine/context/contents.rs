//! What slots hold, read and written by the host.
//!
//! Invariant: a slot is read and written only while no kernel runs, and within its bytes.

use kiln_ir::graph::Origin;
use kiln_ir::plan::{Place, Slot, SlotId};
use kiln_ir::{DType, Tensor, TensorType};

use super::{Context, Loan, RunError};

impl Context {
    /// What a slot holds at the moment: a copy with its elements in row-major order, whatever the slot's layout.
    ///
    /// # Errors
    /// [`RunError::Internal`] for a slot that is not there or whose size is not known yet.
    pub fn slot_tensor(&self, id: SlotId) -> Result<Tensor, RunError> {
        let (slot, _) = self.slot(id)?;
        let layout = slot.ty.layout.clone();
        let stored = self.read_stored(id)?;
        let shape = self.model.formulas().shape(&self.values, id);
        let shape = shape.ok_or(RunError::Internal("a slot without a shape"))?;
        row_major(&stored, &layout, &shape, slot.ty.dtype).ok_or(RunError::Internal("a slot of another layout"))
    }

    /// The bytes of a slot as they are stored.
    pub(super) fn read_stored(&self, id: SlotId) -> Result<Vec<u8>, RunError> {
        let (slot, bytes) = self.slot(id)?;
        if !slot.ty.dtype.is_bytes() {
            return Err(RunError::Internal("a slot of strings has no bytes"));
        }
        let pointer = self.slots.get(id.index()).ok_or(RunError::Internal("a slot that is not there"))?;
        // SAFETY: the slot has that many initialised bytes (buffers start as zeros), and nothing writes to it while
        // the reference is live, which ends with this statement.
        Ok(unsafe { std::slice::from_raw_parts(*pointer, bytes as usize) }.to_vec())
    }

    pub(super) fn slot(&self, slot: SlotId) -> Result<(&Slot, u64), RunError> {
        let plan = self.model.plan();
        let found = plan.slots.get(slot).ok_or(RunError::Internal("a slot that is not there"))?;
        let unknown = RunError::Internal("a slot is used before its size is known");
        Ok((found, self.model.formulas().bytes(&self.values, slot).ok_or(unknown)?))
    }

    /// A slot as a tensor: shared where it is a weight or an input, else copied.
    pub(super) fn read(&self, id: SlotId) -> Result<Tensor, RunError> {
        let internal = RunError::Internal("a slot does not hold what its type says");
        let (slot, _) = self.slot(id)?;
        if !slot.ty.dtype.is_bytes() {
            return self.strings[id.index()].clone().ok_or(internal);
        }
        if let Place::Weights(at) = slot.place {
            return self.model.weight(id, at).ok_or(internal);
        }
        if let Place::Input(n) = slot.place
            && let Some(Loan::Shared(tensor)) = self.inputs.get(n)
        {
            return Ok(tensor.clone());
        }
        let copy = self.read_stored(id)?;
        let shape = self.model.formulas().shape(&self.values, id);
        let shape = shape.ok_or(RunError::Internal("a slot without a shape"))?;
        Tensor::new(slot.ty.dtype, shape, copy).map_err(|_| internal)
    }

    pub(super) fn write(&mut self, id: SlotId, tensor: Tensor, origin: &Origin) -> Result<(), RunError> {
        let (slot, bytes) = self.slot(id)?;
        let found = TensorType::of(tensor.dtype(), tensor.shape());
        let shape = self.model.formulas().shape(&self.values, id);
        if slot.ty.dtype != found.dtype || shape.as_deref() != Some(tensor.shape()) {
            let (expected, found) = (slot.ty.to_string(), found.to_string());
            return Err(RunError::HostResult { origin: origin.clone(), expected, found });
        }
        if !found.dtype.is_bytes() {
            self.strings[id.index()] = Some(tensor);
            return Ok(());
        }
        if tensor.bytes().len() as u64 != bytes {
            return Err(RunError::Internal("a tensor of another size than its type"));
        }
        // SAFETY: the slot has that many bytes, the tensor owns others (operands were copied or are constant), and
        // nothing else refers to the slot.
        unsafe { std::ptr::copy_nonoverlapping(tensor.bytes().as_ptr(), self.slots[id.index()], bytes as usize) };
        Ok(())
    }

    pub(super) fn copy(&mut self, from: SlotId, to: SlotId) {
        self.strings[to.index()] = self.strings[from.index()].clone();
        let bytes = self.model.formulas().bytes(&self.values, from).unwrap_or(0) as usize;
        // SAFETY: the verifier has checked that both slots are of one type and inside their sections.
        unsafe { std::ptr::copy(self.slots[from.index()], self.slots[to.index()], bytes) };
    }
}

/// The elements of a stored tensor in row-major order; nothing for a layout in blocks, which only constants have.
fn row_major(stored: &[u8], layout: &kiln_ir::Layout, shape: &[usize], dtype: DType) -> Option<Tensor> {
    if layout.is_row_major() {
        return Tensor::new(dtype, shape.to_vec(), stored.to_vec()).ok();
    }
    if layout.block.is_some() || layout.order.len() != shape.len() {
        return None;
    }
    // The distance in storage of neighbours along each axis.
    let mut strides = vec![0usize; shape.len()];
    let mut step = dtype.size();
    for &axis in layout.order.iter().rev() {
        let gap = layout.gap.filter(|g| g.0 == axis).map_or(0, |g| g.1);
        step = step.checked_add(gap.checked_mul(dtype.size())?)?;
        *strides.get_mut(axis)? = step;
        step = step.checked_mul(*shape.get(axis)?)?;
    }
    let mut out = Vec::with_capacity(stored.len());
    let mut index = vec![0usize; shape.len()];
    for _ in 0..shape.iter().product::<usize>() {
        let at: usize = index.iter().zip(&strides).map(|(i, s)| i * s).sum();
        out.extend_from_slice(stored.get(at..at + dtype.size())?);
        for (i, extent) in index.iter_mut().zip(shape).rev() {
            *i += 1;
            if *i < *extent {
                break;
            }
            *i = 0;
        }
    }
    Tensor::new(dtype, shape.to_vec(), out).ok()
}
