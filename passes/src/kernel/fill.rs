//! How products are cut into tiles and shares so that they fill a GPU.
//!
//! Invariant: only what the estimate says decides, and it knows the number of multiprocessors. Its constants are times of
//! an H100, taken with `kiln bench --target cuda`; they rank tiles and promise nothing.

use super::schedule::Gpu;

/// Bytes of memory that are moved together.
pub(super) const SECTOR: i64 = 32;

/// Nanoseconds that a second launch takes, which adds the shares' sums.
const JOIN: i64 = 2000;

/// Bytes in a nanosecond that all multiprocessors together read of sums that were just written.
const JOINED: i64 = 8000;

/// Bytes in a nanosecond that one multiprocessor gets of the memory, and of what others read too.
const STREAM: i64 = 24;
const SHARED: i64 = 100;

/// Nanoseconds for one place of the fold of a tile of 1,024 elements in each quarter of a multiprocessor, by multiply-adds.
const STEP: i64 = 40;

/// Nanoseconds of a step whose operands are copied ahead, and of one that reads, rounds and stores some before they are multiplied;
/// and products in a nanosecond.
const COPY: i64 = 150;
const ROUND: i64 = 300;
const PRODUCTS: i64 = 2000;

/// Most shares of a fold.
const MOST_SPLITS: i64 = 16;

/// How a product of few rows is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Narrow {
    /// Columns of a block.
    pub columns: i64,
    /// Programs that share a fold.
    pub splits: i64,
}

fn ceil(a: i64, b: i64) -> i64 {
    (a as u64).div_ceil(b.max(1) as u64) as i64
}

/// Cuts a product of few rows with a matrix of so many columns and places of the fold, of elements of so many bytes.
pub(super) fn narrow(gpu: &Gpu, (batch, width, depth): (i64, i64, i64), size: i64) -> Narrow {
    let widths = [16, 32, 64, 128, 256].map(|bytes| bytes * 2 / size).into_iter();
    let all = widths.flat_map(|columns| (1..=MOST_SPLITS).map(move |splits| Narrow { columns, splits }));
    let time = |n: &Narrow| {
        let blocks = batch * ceil(width, n.columns) * n.splits;
        let bytes = ceil(blocks, gpu.multiprocessors) * ceil(depth, n.splits) * n.columns * size;
        let join = if n.splits > 1 { JOIN + n.splits * batch * width * 4 / JOINED } else { 0 };
        (bytes / STREAM + join, n.splits, -n.columns)
    };
    all.min_by_key(time).unwrap_or(Narrow { columns: SECTOR / size.max(1), splits: 1 })
}

/// What multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// Multiply-adds in every thread.
    Fma,
    /// Matrix instructions of halves, to which f32 in memory are rounded as they are read.
    Halves,
    /// Matrix instructions of elements of four bytes: of f32, which are rounded in registers, or of four numbers of a byte; so many to
    /// a product.
    Words(i64),
    /// Matrix instructions of floats of 8 bits.
    Bytes,
}

/// What is multiplied: products beside one another, rows, columns, and the folds around the one that tiles walk along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Work {
    pub batch: i64,
    pub rows: i64,
    pub columns: i64,
    pub outer: i64,
    pub inner: i64,
    pub unit: Unit,
    /// Bytes of an element of each operand.
    pub sizes: [i64; 2],
}

/// How a product of matrices is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tiles {
    pub rows: i64,
    pub columns: i64,
    pub depth: i64,
    /// Programs that share a fold.
    pub splits: i64,
}

impl Work {
    fn steps(&self, depth: i64) -> i64 {
        self.outer * ceil(self.inner, depth)
    }

    /// Nanoseconds, about.
    fn time(&self, gpu: &Gpu, t: &Tiles) -> i64 {
        let blocks = self.batch * ceil(self.rows, t.rows) * ceil(self.columns, t.columns) * t.splits;
        let resident = ceil(blocks, gpu.multiprocessors);
        let steps = ceil(self.steps(t.depth), t.splits);
        let [left, right] = self.sizes;
        let read = (t.rows * left + t.columns * right) * t.depth / SHARED;
        let products = t.rows * t.columns * t.depth;
        let each = match self.unit {
            Unit::Halves => {
                let wait = if (left, right) == (2, 2) { COPY } else { ROUND };
                wait + resident * (read + products / PRODUCTS)
            }
            // Twice the speed of halves, as data sheets have it; not timed.
            Unit::Bytes => COPY + resident * (read + products / (2 * PRODUCTS)),
            // Half of the speed of halves, as data sheets have it: as many bytes an instruction; not timed.
            Unit::Words(n) => COPY + resident * (read + 2 * n * products / PRODUCTS),
            Unit::Fma => {
                let warps = (t.rows * t.columns / 1024).max(1);
                // Square tiles read their operands less often; for a tile of 64 by 64 this is 1.
                let reads = (t.rows + t.columns) as f64 / (4.0 * (t.rows * t.columns) as f64).sqrt();
                (ceil(resident * warps, 4) * t.depth * STEP) * (100.0 * reads) as i64 / 100
            }
        };
        let sums = t.splits * self.batch * self.rows * self.columns * 8;
        steps * each + if t.splits > 1 { JOIN + sums / JOINED } else { 0 }
    }

    /// The tiles that should take the least time.
    pub fn tiles(&self, gpu: &Gpu) -> Tiles {
        let size = |extent: i64| (extent as u64).next_power_of_two().clamp(16, 128) as i64;
        let sizes = |extent: i64| [16, 32, 64, 128].into_iter().filter(move |s| *s <= size(extent));
        let least = if self.inner <= 8 { 8 } else { 16 };
        let deepest = match self.unit {
            Unit::Fma => least,
            Unit::Halves => 64,
            Unit::Words(_) => 32,
            Unit::Bytes => 128,
        };
        let least = if self.unit == Unit::Bytes { 32 } else { least };
        // Registers of sums are the same, those of what is under way fewer.
        let room = 128 * 128 * if self.unit == Unit::Bytes { 64 } else { 16 };
        let depths =
            [8, 16, 32, 64, 128].into_iter().filter(|d| (least..=deepest).contains(d) && *d < 2 * self.inner.max(8));
        let mut best = None;
        for depth in depths {
            for rows in sizes(self.rows) {
                for columns in sizes(self.columns) {
                    // A warp has 1,024 sums; and registers for what is under way.
                    let narrow = rows * columns < 1024 && (rows < size(self.rows) || columns < size(self.columns));
                    if narrow || rows * columns * depth > room {
                        continue;
                    }
                    let steps = self.steps(depth);
                    // Where the last share is shorter than the others, one loop has to end earlier.
                    let even = |s: &i64| self.outer == 1 || steps % s == 0;
                    for splits in (1..=MOST_SPLITS).filter(|s| even(s) && (*s == 1 || steps / s >= 2)) {
                        let tiles = Tiles { rows, columns, depth, splits };
                        let key = (self.time(gpu, &tiles), splits, -rows * columns);
                        if best.as_ref().is_none_or(|(least, _)| key < *least) {
                            best = Some((key, tiles));
                        }
                    }
                }
            }
        }
        best.map_or(Tiles { rows: 16, columns: 16, depth: least, splits: 1 }, |(_, tiles)| tiles)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::warp::Floats;

    /// Blocks that take equal shares of all steps of all tiles, wherever these begin and end (stream-k, Osama et al. 2023), leave no
    /// multiprocessor idle at the end. What that could gain over whole tiles and split folds, by the estimate: no more than here.
    #[test]
    fn equal_shares_of_all_tiles_would_gain_little() {
        let gpu = Gpu {
            multiprocessors: 132,
            operands: Some(kiln_ir::DType::F16),
            floats: Floats::Whole,
            groups: false,
            float8: false,
        };
        let extents = [256, 512, 768, 1000, 1152, 1280, 1536, 2048, 2304, 2560, 3072, 4096, 5120, 11008];
        let (mut all, mut good, mut worst) = (0, 0, 1.0f64);
        let count = extents.len();
        for n in 0..count.pow(3) {
            let [rows, columns, inner] = [n % count, n / count % count, n / count / count].map(|at| extents[at]);
            // At least one large tile for each multiprocessor; fewer are split in any case.
            if ceil(rows, 128) * ceil(columns, 128) < gpu.multiprocessors {
                continue;
            }
            let work = Work { batch: 1, rows, columns, outer: 1, inner, unit: Unit::Halves, sizes: [2, 2] };
            let found = work.time(&gpu, &work.tiles(&gpu)) as f64;
            let shared = |rows: i64, columns: i64, depth: i64| {
                let each = (rows + columns) * 2 * depth / SHARED + rows * columns * depth / PRODUCTS;
                let tiles = (ceil(work.rows, rows) * ceil(work.columns, columns)) as f64 / gpu.multiprocessors as f64;
                let steps = work.steps(depth) as f64 * (COPY as f64 + tiles * each as f64);
                // Each block leaves the sums of a tile to another one, which reads them, in the same launch.
                (tiles >= 1.0).then(|| steps + (2 * gpu.multiprocessors * rows * columns * 4 / JOINED) as f64)
            };
            let sizes = [16, 32, 64, 128];
            let cuts = (0..48).map(|n| (sizes[n % 4], sizes[n / 4 % 4], [16, 32, 64][n / 16]));
            let cuts = cuts.filter(|(r, c, d)| r * c >= 1024 && r * c * d <= 128 * 128 * 16);
            let least = cuts.filter_map(|(r, c, d)| shared(r, c, d)).fold(f64::INFINITY, f64::min);
            (all, good) = (all + 1, good + usize::from(found < 1.1 * least));
            worst = worst.max(found / least);
        }
        assert!(worst < 1.19 && good * 10 > all * 9, "{worst} at worst, {good} of {all} within a tenth");
    }
}
