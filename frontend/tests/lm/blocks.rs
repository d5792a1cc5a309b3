//! Matrices that stay in quantized blocks mean what the expanded ones mean.

use crate::check_close;
use kiln_frontend::builder::Builder;
use kiln_frontend::checkpoint::{Element, Loader, Stored, Weights};
use kiln_frontend::gguf::Encoding;
use kiln_frontend::nn::{Embedding, Linear, Scope};
use kiln_ir::interp::{Options, eval_graph};
use kiln_ir::{DType, Tensor};

/// A matrix of 6 rows and 64 columns in an encoding.
struct One(Encoding);

impl Weights for One {
    fn names(&self) -> Vec<String> {
        vec!["weight".into()]
    }

    fn get(&self, name: &str) -> Option<Stored> {
        let size = 12 * self.0.block_bytes();
        // The upper byte of the scales is kept small, so that they are.
        let byte =
            |n: usize| if n % self.0.block_bytes() % 2 == 1 && n % self.0.block_bytes() < 4 { 40 } else { n * 89 };
        let bytes: Vec<u8> = (0..size).map(|n| byte(n) as u8).collect();
        (name == "weight").then(|| Stored { element: Element::Float(self.0), shape: vec![6, 64], bytes: bytes.into() })
    }
}

fn run(weights: &One, blocks: bool) -> Vec<Tensor> {
    let loader = Loader::new(weights);
    let loader = if blocks { loader.keeping_blocks() } else { loader };
    let g = Builder::new("t");
    let scope = Scope::new(&g, &loader);
    let x = g.input("x", DType::F32, [2.into(), 3.into(), 64.into()]).unwrap();
    let at = g.input("at", DType::I64, [2.into(), 2.into()]).unwrap();
    g.output("product", Linear::new(&scope, 64, 6, false).unwrap().apply(x).unwrap()).unwrap();
    let table = Embedding::new(&scope, 6, 64).unwrap();
    g.output("rows", table.apply(at).unwrap()).unwrap();
    let graph = g.finish().unwrap();
    loader.finish(|_| false).unwrap();
    let kept = graph.values().any(|(id, v)| graph.constant(id).is_some() && v.ty.dtype != DType::F32);
    assert_eq!(kept, blocks);
    let x: Vec<f32> = (0..2 * 3 * 64).map(|n| (n as f32 * 0.7).sin()).collect();
    let inputs = [Tensor::from_f32(&[2, 3, 64], &x).unwrap(), Tensor::from_i64(&[2, 2], &[5, 0, 3, 3]).unwrap()];
    eval_graph(&graph, &inputs, &Options::default()).unwrap()
}

#[test]
fn products_and_rows_are_those_of_the_expanded_matrix() {
    for encoding in [Encoding::Q8_0, Encoding::Q4_0, Encoding::Q4_1] {
        let (kept, plain) = (run(&One(encoding), true), run(&One(encoding), false));
        assert_eq!(kept[1], plain[1], "{encoding}");
        let (got, want) = (kept[0].to_f32().unwrap(), plain[0].to_f32().unwrap());
        check_close(encoding.name(), &got, &want, 1e-6);
    }
}
