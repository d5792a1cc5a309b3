//! A schedule from outside: what a tuner has found for a kernel.
//!
//! Invariant: a choice changes speed, never results other than by the order of float additions in a fold; what it leaves
//! open the cost model decides.

use super::flat::FlatNest;
use super::forms::{has_few_bits, is_product_sum, unpacks};
use super::schedule::{Machine, Schedule};
use super::{panel_width, preferred_layouts};
use crate::group::Group;
use kiln_ir::graph::{Graph, NodeId, TensorType, ValueId};
use kiln_ir::layout::Layout;
use kiln_ir::ops::Op;
use std::fmt;
use std::str::FromStr;

/// The version of the text form and of what it means; a choice that another version measured may mean something else.
pub const VERSION: u32 = 2;

/// In which order the register tiles of a fold are computed: what is named first changes last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Order {
    /// Columns, other axes; a program walks along the rows. A panel of weights stays in cache while rows stream by.
    Columns,
    /// Columns, other axes, rows; each tile is a program, so that more threads find work.
    Tiles,
    /// Other axes, columns; a program walks along the rows.
    Outer,
    /// Other axes, rows, columns; each tile is a program. The rows' operand stays in cache while weights stream by.
    Rows,
    /// Other axes, rows; a program walks along the columns. The result is written line after line of memory.
    Across,
}

impl Order {
    /// All orders.
    pub const ALL: [Order; 5] = [Order::Columns, Order::Tiles, Order::Outer, Order::Rows, Order::Across];

    fn name(self) -> &'static str {
        match self {
            Order::Columns => "columns",
            Order::Tiles => "tiles",
            Order::Outer => "outer",
            Order::Rows => "rows",
            Order::Across => "across",
        }
    }
}

/// What is chosen of a fold's schedule.
///
/// The text form names what is chosen: `rows=12 columns=32 panel=32 unroll=4 order=columns`, or of a
/// [`Place`](crate::boundary::Place) `cut=apart3` or `result=last`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Choice {
    /// Rows of a register tile.
    pub rows: Option<i64>,
    /// Columns of a register tile.
    pub columns: Option<i64>,
    /// Columns of the panels into which a constant operand is cut.
    pub panel: Option<i64>,
    /// How often the innermost loop's body is repeated.
    pub unroll: Option<i64>,
    /// Order of the tiles.
    pub order: Option<Order>,
    /// Where a kernel ends, and how its result lies.
    pub boundary: Option<Boundary>,
}

/// Bounds of the numbers in a choice: beyond them code would grow without end.
const MOST: [(&str, i64); 4] = [("rows", 64), ("columns", 1024), ("panel", 4096), ("unroll", 32)];

/// What lies between a kernel and its neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Boundary {
    /// Where the rules of fusion and the layout pass have it.
    Rules,
    /// Before the readers of its n-th op, in the order of the graph: that op's result is stored.
    Apart(usize),
    /// Its n-th operand is computed in it.
    With(usize),
    /// Its result lies otherwise in memory.
    Result(Arrangement),
}

/// An order of a value's axes in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arrangement {
    /// Row-major.
    Rows,
    /// Channels-last.
    Last,
    /// Row-major but for the two innermost axes, which change places.
    Turned,
}

impl Arrangement {
    /// All of them.
    pub const ALL: [Arrangement; 3] = [Arrangement::Rows, Arrangement::Last, Arrangement::Turned];

    /// The layout of a value with that many axes.
    pub fn layout(self, rank: usize) -> Layout {
        match self {
            Arrangement::Rows => Layout::row_major(rank),
            Arrangement::Last => Layout::channels_last(rank),
            Arrangement::Turned => {
                let mut layout = Layout::row_major(rank);
                layout.order.swap(rank.saturating_sub(2), rank.saturating_sub(1));
                layout
            }
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Arrangement::Rows => "rows",
            Arrangement::Last => "last",
            Arrangement::Turned => "turned",
        }
    }
}

impl fmt::Display for Boundary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Boundary::Rules => f.write_str("cut=rules"),
            Boundary::Apart(n) => write!(f, "cut=apart{n}"),
            Boundary::With(n) => write!(f, "cut=with{n}"),
            Boundary::Result(arrangement) => write!(f, "result={}", arrangement.name()),
        }
    }
}

impl Boundary {
    fn parse(name: &str, value: &str) -> Option<Boundary> {
        let number = |name: &str| value.strip_prefix(name)?.parse().ok();
        match (name, value) {
            ("result", _) => Arrangement::ALL.into_iter().find(|a| a.name() == value).map(Boundary::Result),
            ("cut", "rules") => Some(Boundary::Rules),
            ("cut", _) => number("apart").map(Boundary::Apart).or_else(|| number("with").map(Boundary::With)),
            _ => None,
        }
    }
}

/// A text is no choice.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no part of a schedule")]
pub struct ChoiceError(pub String);

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Choice { rows, columns, panel, unroll, order, boundary } = self;
        let numbers = MOST.iter().map(|m| m.0).zip([rows, columns, panel, unroll]);
        let mut words: Vec<String> = numbers.filter_map(|(name, n)| n.map(|n| format!("{name}={n}"))).collect();
        words.extend(order.map(|order| format!("order={}", order.name())));
        words.extend(boundary.map(|boundary| boundary.to_string()));
        f.write_str(&words.join(" "))
    }
}

impl FromStr for Choice {
    type Err = ChoiceError;

    fn from_str(text: &str) -> Result<Choice, ChoiceError> {
        let mut choice = Choice::default();
        for word in text.split_whitespace() {
            let fail = || ChoiceError(word.to_string());
            let (name, value) = word.split_once('=').ok_or_else(fail)?;
            if name == "order" {
                choice.order = Some(Order::ALL.into_iter().find(|o| o.name() == value).ok_or_else(fail)?);
                continue;
            }
            if matches!(name, "cut" | "result") {
                choice.boundary = Some(Boundary::parse(name, value).ok_or_else(fail)?);
                continue;
            }
            let most = MOST.iter().find(|m| m.0 == name).ok_or_else(fail)?.1;
            let number = value.parse::<i64>().ok().filter(|n| (1..=most).contains(n)).ok_or_else(fail)?;
            let place = match name {
                "rows" => &mut choice.rows,
                "columns" => &mut choice.columns,
                "panel" => &mut choice.panel,
                _ => &mut choice.unroll,
            };
            *place = Some(number);
        }
        Ok(choice)
    }
}

impl Schedule {
    /// The schedule with what is chosen from outside. An axis that the schedule does not tile stays so.
    #[must_use]
    pub fn with(mut self, choice: &Choice) -> Schedule {
        if let (Some(rows), Some(_)) = (choice.rows, &self.row) {
            self.rows = rows.clamp(1, 64);
        }
        if let (Some(columns), Some(_)) = (choice.columns, &self.column) {
            self.columns = columns.clamp(1, 1024);
        }
        self.unroll = choice.unroll.map_or(self.unroll, |u| u.clamp(1, 32));
        self
    }
}

/// What identifies a kernel, whatever model it is in: the types of its operands and result, and what it computes. Constants that
/// the scheduler may pack are written as such; their values do not matter.
pub fn key(graph: &Graph, group: &Group) -> String {
    let mut text = String::new();
    for &v in &group.inputs {
        text.push_str(&format!("{}{}; ", graph.ty(v), if packable(graph, group, v) { " packed" } else { "" }));
    }
    text.push_str(&format!("-> {}", graph.ty(group.output)));
    for stage in &group.stages {
        text.push_str(&format!("\n{stage}"));
    }
    for (symbol, (lo, hi)) in &graph.symbols {
        let mentions = |ty: &TensorType| ty.dims.iter().any(|d| d.mentions(symbol));
        if group.inputs.iter().chain([&group.output]).any(|&v| mentions(graph.ty(v))) {
            text.push_str(&format!("\n{symbol} in {lo}..{hi}"));
        }
    }
    text
}

/// Whether a constant is this group's own, so that it may be laid out as its loops read it. What the caller gets keeps its order.
/// A weight of few bits is also where rows are picked from it elsewhere, as from a table that is the last layer too: a few of them,
/// in any layout.
pub(super) fn packable(graph: &Graph, group: &Group, value: ValueId) -> bool {
    let few_bits = matches!(group.stages.as_slice(), [only] if has_few_bits(&only.body));
    let picks = |n: &NodeId| few_bits && matches!(graph.node(*n).op, Op::Gather(_));
    let alone = graph.users(value).iter().filter(|n| !picks(n)).count() == 1 && !graph.is_output(value);
    graph.constant(value).is_some() && graph.ty(value).layout.is_row_major() && alone
}

/// The schedules that a fold may have, and what the cost model makes of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Space {
    /// Extent of the tile's rows; 1 where there are none.
    pub rows: i64,
    /// Extent of the tile's columns; 1 where there are none.
    pub columns: i64,
    /// Steps of the fold.
    pub depth: i64,
    /// Iterations of the other axes.
    pub outer: i64,
    /// What the cost model chooses, written out.
    pub default: Choice,
    /// Whether the fold runs along vector lanes; else the columns do.
    along_fold: bool,
    /// Whether an operand is laid out as the loops read it.
    packs: bool,
    lanes: i64,
    registers: i64,
}

impl Space {
    /// The space of a group that is one sum of products; nothing for other groups.
    pub fn of(graph: &Graph, group: &Group, machine: &Machine) -> Option<Space> {
        let [stage] = group.stages.as_slice() else { return None };
        // As the scheduler does: constants are packed first, and the loops are cut for what they then are.
        let packed = preferred_layouts(graph, group, machine, &Choice::default());
        let of = |v: &ValueId| {
            let layout = packed.iter().find(|(p, _)| p == v).map(|(_, layout)| layout.clone());
            let ty = graph.ty(*v).clone();
            layout.map_or(ty.clone(), |layout| TensorType { layout, ..ty })
        };
        let types: Vec<TensorType> = group.inputs.iter().map(of).collect();
        let output = graph.ty(group.output);
        let flat = FlatNest::new(stage, &types.iter().collect::<Vec<_>>(), Some(output), &graph.symbols)?;
        let volume = |n: &FlatNest| n.axes.iter().map(|a| n.guess(a)).fold(1i64, i64::saturating_mul);
        let nest = flat.boxes(super::MOST_BOXES).into_iter().map(FlatNest::collapse).max_by_key(volume)?;
        if nest.folds.is_empty() || !is_product_sum(&nest) {
            return None;
        }
        let nest = if unpacks(&nest.body) { nest.in_blocks() } else { nest };
        let schedule = Schedule::choose(&nest, machine);
        let extent = |s: &Option<kiln_ir::expr::Symbol>| {
            s.as_ref().and_then(|s| nest.axes.iter().find(|a| a.symbol == *s)).map_or(1, |a| nest.guess(a))
        };
        let (rows, columns) = (extent(&schedule.row), extent(&schedule.column));
        let all = volume(&nest).max(1);
        let packs = !packed.is_empty();
        let panel = packs.then(|| panel_width(graph, group, machine)).flatten().map(|w| w as i64);
        let outer = all / (rows * columns).max(1);
        let programs = outer.saturating_mul(columns.div_euclid(schedule.columns.max(1)).max(1));
        let default = Choice {
            rows: schedule.row.is_some().then_some(schedule.rows),
            columns: schedule.column.is_some().then_some(schedule.columns),
            panel: panel.filter(|&w| w > 1),
            unroll: Some(schedule.unroll),
            order: Some(schedule.order(&nest, machine, programs)),
            boundary: None,
        };
        Some(Space {
            rows,
            columns,
            depth: nest.folds.iter().map(|f| nest.guess(f)).fold(1i64, i64::saturating_mul),
            outer,
            default,
            along_fold: schedule.lanes.is_some(),
            packs: default.panel.is_some(),
            lanes: machine.lanes as i64,
            registers: machine.registers as i64,
        })
    }

    /// The values that each part of a choice may take: rows, columns, panels as multiples of the columns, unrolling.
    fn parts(&self) -> [Vec<i64>; 4] {
        let within = |most: i64| move |&n: &i64| n <= most.max(1);
        let rows = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16, 20, 24].into_iter().filter(within(self.rows));
        let columns: Vec<i64> = if self.along_fold {
            [1, 2, 3, 4, 6, 8].into_iter().filter(within(self.columns)).collect()
        } else {
            let vectors = [1, 2, 3, 4, 5, 6, 8, 12, 16].into_iter().map(|v| v * self.lanes);
            let mut all: Vec<i64> = vectors.filter(within(self.columns)).collect();
            // Fewer columns than a vector has lanes: as the cost model cuts them, or one tile.
            if all.is_empty() {
                all.extend(self.default.columns.into_iter().chain([self.columns]));
                all.dedup();
            }
            all
        };
        let panels = if self.packs && !self.along_fold { vec![1, 2, 4] } else { vec![1] };
        let unrolls = [1, 2, 3, 4, 6, 8, 16].into_iter().filter(within(self.depth)).collect();
        [rows.collect(), columns, panels, unrolls]
    }

    /// Every choice, the cost model's own included, without those that need many more registers than there are.
    pub fn choices(&self) -> Vec<Choice> {
        let [rows, columns, panels, unrolls] = self.parts();
        let mut all = vec![self.default];
        for &r in &rows {
            for &c in &columns {
                let vectors = self.vectors(c);
                if r * vectors > self.registers + 4 || r * vectors * self.lanes.min(4) > 512 {
                    continue;
                }
                for (&p, &u) in panels.iter().flat_map(|p| unrolls.iter().map(move |u| (p, u))) {
                    // A body of more instructions than the first instruction cache holds gains nothing.
                    if r * vectors * u > 640 {
                        continue;
                    }
                    for order in Order::ALL {
                        let many = |order: Order| self.rows > r || !matches!(order, Order::Tiles | Order::Rows);
                        if !many(order) || (self.outer == 1 && order == Order::Outer) {
                            continue;
                        }
                        let choice = Choice {
                            rows: self.default.rows.map(|_| r),
                            columns: self.default.columns.map(|_| c),
                            panel: self.packs.then_some(c * p),
                            unroll: Some(u),
                            order: Some(order),
                            boundary: None,
                        };
                        all.push(choice);
                    }
                }
            }
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    fn vectors(&self, columns: i64) -> i64 {
        if self.along_fold { columns } else { ((columns + self.lanes - 1) / self.lanes).max(1) }
    }

    /// What the cost model thinks a choice takes, in cycles of one core: multiply-adds, loads and the latency of sums at
    /// two a cycle, spilled sums, ragged ends, and weights that are read again for each block of rows.
    pub fn estimate(&self, choice: &Choice) -> f64 {
        let rows = choice.rows.unwrap_or(1).max(1);
        let columns = choice.columns.unwrap_or(1).max(1);
        let unroll = choice.unroll.unwrap_or(1).max(1) as f64;
        let width = if self.along_fold { 1 } else { self.lanes };
        let steps = if self.along_fold { (self.depth / self.lanes).max(1) } else { self.depth } as f64;
        let tile = |r: i64, c: i64| -> f64 {
            if r == 0 || c == 0 {
                return 0.0;
            }
            let vectors = c.div_euclid(width).max(1);
            let sums = (r * vectors) as f64;
            let spilled = (r * vectors + vectors + 1 - self.registers).max(0) as f64;
            let loads = (vectors + r) as f64;
            // Four cycles pass before a sum can be added to again.
            let cycles = (sums / 2.0).max(loads / 2.0).max(4.0);
            // A lone column that is no whole vector is as dear as one.
            let ragged = if c % width == 0 { 1.0 } else { 1.5 };
            steps * (cycles * ragged + spilled + 1.5 / unroll) + 4.0 * sums + 20.0
        };
        let cut = |extent: i64, block: i64| [(extent / block, block), (1, extent % block)];
        let tiles = (self.rows + rows - 1) / rows;
        let alike = [(self.rows % tiles, self.rows / tiles + 1), (tiles - self.rows % tiles, self.rows / tiles)];
        let mut total = 0.0;
        for (many_rows, r) in alike {
            for (many_columns, c) in cut(self.columns, columns) {
                total += many_rows as f64 * many_columns as f64 * tile(r, c);
            }
        }
        // A panel that the first cache does not hold comes from the second one for every block of rows.
        let panel = self.depth as f64 * columns as f64 * 4.0;
        let passes = (self.rows as f64 / rows as f64).ceil();
        let tiles = (self.columns as f64 / columns as f64).ceil();
        let again = if panel > 32_768.0 { panel / 32.0 } else { panel / 128.0 };
        self.outer as f64 * (total + 0.25 * passes * tiles * again)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_round_trip_and_bad_ones_are_named() {
        let full: Choice = "rows=12 columns=32 panel=64 unroll=4 order=outer".parse().unwrap();
        assert_eq!(full.to_string().parse(), Ok(full));
        assert_eq!("".parse(), Ok(Choice::default()));
        let cuts =
            [("cut=rules", Boundary::Rules), ("cut=apart12", Boundary::Apart(12)), ("cut=with0", Boundary::With(0))];
        let laid = [("result=turned", Boundary::Result(Arrangement::Turned))];
        for (text, boundary) in cuts.into_iter().chain(laid) {
            let choice: Choice = text.parse().unwrap();
            assert_eq!((choice.boundary, choice.to_string()), (Some(boundary), text.to_string()));
        }
        let one: Choice = "order=rows".parse().unwrap();
        assert_eq!(one.to_string(), "order=rows");
        for bad in [
            "rows",
            "rows=0",
            "rows=65",
            "rows=x",
            "order=up",
            "deep=1",
            "unroll=-1",
            "cut=apart",
            "cut=x1",
            "result=up",
        ] {
            assert_eq!(bad.parse::<Choice>(), Err(ChoiceError(bad.into())));
        }
    }
}
