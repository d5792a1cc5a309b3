//! What the stand-in remembers.
//!
//! Invariant: an address that is not in memory that was allocated and not freed is never followed.

use super::{
    ILLEGAL_ADDRESS, INVALID_HANDLE, INVALID_PTX, INVALID_VALUE, LAUNCH_FAILED, NOT_FOUND, OUT_OF_MEMORY,
    UNSUPPORTED_PTX_VERSION,
};
use kiln_ptx::emulate::{self, Argument, Buffer, Launch, Module, Options};
use std::collections::VecDeque;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Instant;

/// A `CUresult`.
pub type Status = u32;

/// Memory of the host that a caller named.
#[derive(Clone, Copy)]
pub struct HostMemory(pub *mut u8);

// SAFETY: it is followed under the state's lock alone, as the driver would, on whatever thread.
unsafe impl Send for HostMemory {}

/// Memory of the host that was allocated here, and is freed with this.
pub struct Pinned {
    memory: HostMemory,
    bytes: usize,
}

impl Pinned {
    /// Filled with what nobody has written.
    pub fn new(bytes: usize) -> Pinned {
        let memory = Box::into_raw(vec![0xa5u8; bytes].into_boxed_slice());
        Pinned { memory: HostMemory(memory.cast()), bytes }
    }

    pub fn address(&self) -> *mut u8 {
        self.memory.0
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: the memory is that of a boxed slice of this length, and the queue was drained before.
        drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(self.memory.0, self.bytes)) });
    }
}

/// What was copied and started.
#[derive(Clone, Copy, Default)]
pub struct Counts {
    pub to_device: usize,
    pub from_device: usize,
    pub within: usize,
    pub launches: usize,
}

/// Something that is done in order on the one stream.
#[derive(Clone)]
pub enum Node {
    /// From pinned memory, which is read when it is done.
    Upload {
        to: u64,
        from: HostMemory,
        bytes: usize,
    },
    /// What ordinary memory held.
    Write {
        to: u64,
        contents: Vec<u8>,
    },
    Download {
        to: HostMemory,
        from: u64,
        bytes: usize,
    },
    Record {
        event: usize,
    },
    Launch {
        function: usize,
        grid: [u32; 3],
        block: [u32; 3],
        shared: usize,
        arguments: Vec<Vec<u8>>,
    },
    Copy {
        to: u64,
        from: u64,
        bytes: usize,
    },
    Set {
        to: u64,
        value: u8,
        bytes: usize,
    },
}

struct Function {
    module: usize,
    name: String,
    /// Bytes of dynamic shared memory that it may have.
    allowed: usize,
}

/// The driver's state.
pub struct State {
    pub initialised: bool,
    pub current: bool,
    /// What all calls give after a kernel has failed.
    pub broken: Option<Status>,
    pub capturing: Option<Vec<Node>>,
    pub graphs: Vec<Option<Vec<Node>>>,
    /// When each was reached, once it was.
    pub events: Vec<Option<Instant>>,
    pub pinned: Vec<Pinned>,
    pub counts: Counts,
    /// What was begun and waits to be done.
    queue: VecDeque<Node>,
    /// The n-th allocation is the interpreter's n-th buffer; one that was freed is empty.
    memory: Vec<Buffer>,
    modules: Vec<Option<Arc<Module>>>,
    functions: Vec<Function>,
    worse: String,
}

pub static STATE: LazyLock<Mutex<State>> = LazyLock::new(|| {
    Mutex::new(State {
        initialised: false,
        current: false,
        broken: None,
        capturing: None,
        graphs: Vec::new(),
        events: Vec::new(),
        pinned: Vec::new(),
        counts: Counts::default(),
        queue: VecDeque::new(),
        memory: Vec::new(),
        modules: Vec::new(),
        functions: Vec::new(),
        worse: std::env::var("KILN_STAND_IN").unwrap_or_default(),
    })
});

impl State {
    /// What `KILN_STAND_IN` says of a word; 1 where it stands alone.
    pub fn worse(&self, word: &str) -> Option<usize> {
        self.worse.split(',').find_map(|part| match part.split_once('=') {
            Some((name, value)) if name == word => value.parse().ok(),
            None if part == word => Some(1),
            Some(_) | None => None,
        })
    }

    pub fn total(&self) -> usize {
        self.worse("memory").unwrap_or(1 << 32)
    }

    pub fn free(&self) -> usize {
        self.total().saturating_sub(self.memory.iter().map(|b| b.bytes.len()).sum())
    }

    pub fn allocate(&mut self, bytes: usize) -> Result<u64, Status> {
        if bytes == 0 {
            return Err(INVALID_VALUE);
        }
        if bytes > self.free() {
            return Err(OUT_OF_MEMORY);
        }
        // Nobody should rely on zeros.
        self.memory.push(Buffer { bytes: vec![0xff; bytes], written: true, initialised: true, granule: 1 });
        Ok(emulate::address(self.memory.len() - 1))
    }

    pub fn release(&mut self, address: u64) -> Result<(), Status> {
        let n = (0..self.memory.len()).find(|n| emulate::address(*n) == address).ok_or(INVALID_VALUE)?;
        let freed = std::mem::take(&mut self.memory[n].bytes);
        if freed.is_empty() { Err(INVALID_VALUE) } else { Ok(()) }
    }

    /// Memory of one allocation.
    pub fn bytes(&mut self, address: u64, bytes: usize) -> Result<&mut [u8], Status> {
        let found = self.memory.iter_mut().enumerate().find_map(|(n, buffer)| {
            let at = usize::try_from(address.checked_sub(emulate::address(n))?).ok()?;
            buffer.bytes.get_mut(at..at.checked_add(bytes)?)
        });
        found.ok_or(INVALID_VALUE)
    }

    pub fn load(&mut self, text: &str) -> Result<usize, Status> {
        if self.worse("refuse").is_some() {
            return Err(UNSUPPORTED_PTX_VERSION);
        }
        let module = Module::parse(text).map_err(|e| {
            eprintln!("stand-in: {e}");
            INVALID_PTX
        })?;
        self.modules.push(Some(Arc::new(module)));
        Ok(self.modules.len() - 1)
    }

    pub fn unload(&mut self, module: usize) -> Result<(), Status> {
        self.modules.get_mut(module).and_then(Option::take).map(|_| ()).ok_or(INVALID_HANDLE)
    }

    pub fn function(&mut self, module: usize, name: &str) -> Result<usize, Status> {
        let code = self.modules.get(module).and_then(Option::as_ref).ok_or(INVALID_HANDLE)?;
        code.kernel(name).ok_or(NOT_FOUND)?;
        self.functions.push(Function { module, name: name.to_string(), allowed: 48 << 10 });
        Ok(self.functions.len() - 1)
    }

    pub fn allow(&mut self, function: usize, bytes: i32) -> Result<(), Status> {
        let bytes = usize::try_from(bytes).ok().filter(|b| *b <= 163 << 10).ok_or(INVALID_VALUE)?;
        self.functions.get_mut(function).ok_or(INVALID_HANDLE)?.allowed = bytes;
        Ok(())
    }

    fn code(&self, function: usize) -> Result<(&Function, Arc<Module>), Status> {
        let function = self.functions.get(function).ok_or(INVALID_HANDLE)?;
        let module = self.modules.get(function.module).and_then(Clone::clone).ok_or(INVALID_HANDLE)?;
        Ok((function, module))
    }

    /// Bytes of each parameter of a function.
    pub fn parameters(&self, function: usize) -> Result<Vec<usize>, Status> {
        let (function, module) = self.code(function)?;
        let kernel = module.kernel(&function.name).ok_or(NOT_FOUND)?;
        Ok(kernel.parameter_bytes().collect())
    }

    pub fn forget(&mut self, graph: usize) -> Result<(), Status> {
        self.graphs.get_mut(graph).and_then(Option::take).map(|_| ()).ok_or(INVALID_HANDLE)
    }

    /// Whether memory of the host was allocated here.
    pub fn is_pinned(&self, memory: HostMemory, bytes: usize) -> bool {
        let (first, end) = (memory.0.addr(), memory.0.addr().saturating_add(bytes));
        self.pinned.iter().any(|p| p.address().addr() <= first && end <= p.address().addr() + p.bytes)
    }

    /// Does everything that was begun.
    pub fn drain(&mut self) -> Result<(), Status> {
        while let Some(node) = self.queue.pop_front() {
            self.execute(node)?;
        }
        Ok(())
    }

    /// Does everything up to the last record of an event.
    pub fn drain_to(&mut self, event: usize) -> Result<(), Status> {
        let of = |node: &Node| matches!(node, Node::Record { event: e } if *e == event);
        let count = self.queue.iter().rposition(of).map_or(0, |n| n + 1);
        for _ in 0..count {
            let Some(node) = self.queue.pop_front() else { break };
            self.execute(node)?;
        }
        Ok(())
    }

    /// Puts something off, or notes it where a graph is captured.
    pub fn submit(&mut self, node: Node) -> Result<(), Status> {
        match &mut self.capturing {
            Some(nodes) => nodes.push(node),
            None => self.queue.push_back(node),
        }
        Ok(())
    }

    fn execute(&mut self, node: Node) -> Result<(), Status> {
        match node {
            Node::Upload { to, from, bytes } => {
                self.counts.to_device += bytes;
                let target = self.bytes(to, bytes)?.as_mut_ptr();
                // SAFETY: the memory was pinned and was not freed since, which drains the queue; the target has this length.
                unsafe { std::ptr::copy_nonoverlapping(from.0.cast_const(), target, bytes) };
                Ok(())
            }
            Node::Write { to, contents } => {
                self.counts.to_device += contents.len();
                self.bytes(to, contents.len())?.copy_from_slice(&contents);
                Ok(())
            }
            Node::Download { to, from, bytes } => {
                self.counts.from_device += bytes;
                let source = self.bytes(from, bytes)?.as_ptr();
                // SAFETY: pinned memory was not freed since, and for other memory the caller is still waiting.
                unsafe { std::ptr::copy_nonoverlapping(source, to.0, bytes) };
                Ok(())
            }
            Node::Record { event } => {
                *self.events.get_mut(event).ok_or(INVALID_HANDLE)? = Some(Instant::now());
                Ok(())
            }
            Node::Copy { to, from, bytes } => {
                self.counts.within += bytes;
                let source = self.bytes(from, bytes)?.to_vec();
                self.bytes(to, bytes)?.copy_from_slice(&source);
                Ok(())
            }
            Node::Set { to, value, bytes } => {
                self.bytes(to, bytes)?.fill(value);
                Ok(())
            }
            Node::Launch { function, grid, block, shared, arguments } => {
                self.counts.launches += 1;
                let (function, module) = self.code(function)?;
                let kernel = module.kernel(&function.name).ok_or(NOT_FOUND)?;
                if shared > function.allowed {
                    return Err(INVALID_VALUE);
                }
                let arguments = arguments.into_iter().map(Argument::Bytes).collect();
                let launch = Launch { grid, block, shared, arguments };
                let options = Options { checks: self.worse("checks").is_some(), ..Options::default() };
                let report = emulate::run(&module, kernel, &launch, &mut self.memory, &options).map_err(|e| {
                    eprintln!("stand-in: {e}");
                    INVALID_VALUE
                })?;
                if report.findings.is_empty() {
                    return Ok(());
                }
                report.findings.iter().for_each(|finding| eprintln!("stand-in: {finding}"));
                let outside = report.findings.iter().any(|f| f.kind == emulate::Kind::OutOfBounds);
                let status = if outside { ILLEGAL_ADDRESS } else { LAUNCH_FAILED };
                self.broken = Some(status);
                Err(status)
            }
        }
    }
}
