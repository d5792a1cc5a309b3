//! `kiln report`: the page is looked at in Chromium, at two widths and in two themes.

use crate::models::mlp;
use crate::{Place, kiln};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Looks at the page from inside: what is wider than the screen, cut, empty or overlaps, and whether searching and opening work.
const CHECKS: &str = r##"
<script>
"use strict";
(() => {
  theme("{theme}");
  const wrong = [], say = (text) => wrong.push(text);
  const root = document.documentElement;
  if (root.dataset.drawn !== "yes") say("the script did not come to its end");
  if (root.scrollWidth > innerWidth) say(`the page is ${root.scrollWidth} wide, the screen ${innerWidth}`);
  for (const id of ["time", "graph", "memory", "roofline", "kernels", "accuracy", "tuning"]) {
    const node = document.getElementById(id);
    if (!node) { say(`there is no section ${id}`); continue; }
    const box = node.getBoundingClientRect();
    if (box.height < 90 || box.width < 300) say(`section ${id} is ${box.width} by ${box.height}`);
  }
  // Names are shortened on purpose, with dots; the details have them whole.
  const short = (node) => getComputedStyle(node).textOverflow === "ellipsis" || node.tagName === "PRE";
  for (const node of document.querySelectorAll("body *")) {
    const box = node.getBoundingClientRect();
    if (!box.width || node.closest("[hidden]") || node.tagName === "PATH") continue;
    if (box.right > innerWidth + 1 || box.left < -1) say(`${node.tagName}.${node.className} goes from ${box.left} to ${box.right}`);
    const style = getComputedStyle(node);
    if (style.overflowX !== "visible" && !short(node) && node.scrollWidth > node.clientWidth + 1) say(`${node.tagName}.${node.className} is cut`);
  }
  const charts = [...document.querySelectorAll(".chart svg")];
  if (charts.length < 3) say(`there are ${charts.length} charts`);
  for (const svg of charts) {
    const frame = svg.getBoundingClientRect(), name = svg.getAttribute("aria-label");
    if (svg.children.length < 6 || frame.height < 60) say(`the chart ${name} is empty`);
    for (const text of svg.querySelectorAll("text")) {
      const box = text.getBoundingClientRect();
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 || box.bottom > frame.bottom + 1) say(`${name}: the text ${text.textContent} leaves the chart`);
    }
    for (const part of svg.querySelectorAll("path, rect, circle")) {
      for (const attribute of part.attributes) if (/NaN|Infinity|undefined/.test(attribute.value)) say(`${name}: ${attribute.name} is ${attribute.value}`);
    }
  }
  const text = document.body.innerText;
  for (const word of ["NaN", "undefined", "[object", "null"]) if (text.includes(word)) say(`the page says ${word}`);
  const rows = [...document.querySelectorAll(".row")], seen = () => rows.filter((row) => row.offsetHeight > 0).length;
  if (rows.length !== data.steps.length || seen() === 0) say(`${rows.length} rows, ${seen()} of them seen`);
  const search = document.querySelector("input[type=search]"), type = (words) => { search.value = words; search.dispatchEvent(new Event("input")); };
  type("second");
  if (seen() === 0 || seen() >= rows.length) say(`a search shows ${seen()} of ${rows.length} rows`);
  type("no such thing at all");
  if (seen() !== 0) say("a search for nothing finds something");
  type("");
  open(0);
  const detail = document.getElementById("detail"), code = detail.querySelector("pre");
  if (detail.hidden || !code || code.textContent.length < 50 || !code.textContent.includes("ret")) say("the details have no machine code");
  const box = detail.getBoundingClientRect();
  if (box.right > innerWidth + 1 || box.left < -1 || detail.scrollWidth > detail.clientWidth + 1) say("the details are cut");
  close();
  const style = getComputedStyle(document.body), dark = root.dataset.theme === "dark";
  const light = (colour) => colour.match(/\d+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0);
  if ((light(style.backgroundColor) < light(style.color)) !== dark) say("the theme does not show");
  const out = document.createElement("pre");
  out.id = "checks";
  out.hidden = true;
  out.textContent = JSON.stringify({ width: innerWidth, dark, wrong });
  parent.document.body.append(out);
})();
</script>
"##;

/// Chromium, where it is: `CHROMIUM`, else by the names that systems give it.
fn browser() -> Option<PathBuf> {
    if let Some(program) = std::env::var_os("CHROMIUM") {
        return Some(program.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let names = ["chromium", "chromium-browser", "google-chrome", "chrome"];
    let found = std::env::split_paths(&path).flat_map(|folder| names.map(|name| folder.join(name)));
    found.into_iter().find(|program| program.is_file())
}

/// The height that pictures have.
const HEIGHT: u32 = 1600;

/// The DOM and a picture of a page. It stands in a frame: no window of Chromium is as narrow as a telephone.
fn look(browser: &Path, place: &Place, html: &str, (width, theme): (u32, &str)) -> (String, PathBuf) {
    let picture = place.path(&format!("{width}-{theme}.png"));
    let inner = html.replace("</body>", &format!("{}</body>", CHECKS.replace("{theme}", theme)));
    let inner = inner.replace('&', "&amp;").replace('"', "&quot;");
    let frame = format!(
        "<!doctype html><body style=\"margin:0\"><iframe style=\"border:0;width:{width}px;height:{HEIGHT}px\" srcdoc=\"{inner}\">\
         </iframe></body>"
    );
    let page = place.write(&format!("{width}-{theme}.html"), frame.as_bytes());
    let run = |what: String| {
        let profile = place.path(&format!("profile-{width}-{theme}"));
        let output = Command::new(browser)
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"])
            .args(["--disable-dev-shm-usage", "--virtual-time-budget=5000"])
            .arg(format!("--user-data-dir={}", profile.display()))
            .arg(format!("--window-size={},{HEIGHT}", width.max(500)))
            .arg(what)
            .arg(format!("file://{}", page.display()))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let dom = run("--dump-dom".into());
    run(format!("--screenshot={}", picture.display()));
    (dom, picture)
}

/// The share of the left part of a picture that its most frequent colour takes, and how many colours are there.
fn colours(picture: &Path, width: u32) -> (f64, usize) {
    let decoder = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(picture).unwrap()));
    let mut reader = decoder.read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    let each = info.line_size / info.width as usize;
    let mut counts = std::collections::HashMap::new();
    for line in pixels[..info.buffer_size()].chunks_exact(info.line_size) {
        line.chunks_exact(each).take(width as usize).for_each(|p| *counts.entry(p.to_vec()).or_insert(0usize) += 1);
    }
    let most = counts.values().max().copied().unwrap_or(0);
    (most as f64 / f64::from(width * info.height), counts.len())
}

#[test]
fn reports_show_everything_at_two_widths_and_in_two_themes() {
    let place = Place::new();
    let model = place.write("net.onnx", &mlp());
    let (db, page) = (place.path("t.jsonl"), place.path("r.html"));
    kiln!("tune", &model, "--db", &db, "--trials", "4").succeeds();
    kiln!("report", &model, "-o", &page, "--runs", "5", "--tuning", &db).succeeds();
    let html = std::fs::read_to_string(&page).unwrap();
    assert!(html.contains(r#""rules":"cut=rules""#), "the places that were measured");
    assert!(!html.contains("http://") && !html.contains("https://") && !html.contains("src="), "it loads something");
    // An artifact has a report too, with the same sections and fusions, but not the compiler's reasons.
    let (artifact, second) = (place.path("net.kiln"), place.path("a.html"));
    kiln!("compile", &model, "-o", &artifact).succeeds();
    kiln!("report", &artifact, "-o", &second, "--runs", "2", "--tuning", &db, "--against", &model).succeeds();
    let of_artifact = std::fs::read_to_string(&second).unwrap();
    assert!(of_artifact.contains(r#""operators":["Gemm"#), "fused operators");
    assert!(of_artifact.contains(r#""chosen":"#) && of_artifact.contains(r#""with":"net.onnx""#));
    kiln!("report", &artifact, "-o", &second, "--target", "sm_80").fails(2, "compiled already");
    kiln!("report", &model, "-o", &place.path("no/r.html")).fails(2, "cannot write");

    let Some(browser) = browser() else {
        eprintln!("SKIPPED: no Chromium here (CHROMIUM, or chromium on the PATH), so no one has looked at the report");
        return;
    };
    for (name, html) in [("model", html), ("artifact", of_artifact)] {
        let views: &[_] = if name == "model" {
            &[(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
        } else {
            &[(390, "light")]
        };
        for &(width, theme) in views {
            let (dom, picture) = look(&browser, &place, &html, (width, theme));
            let (_, report) = dom.split_once("<pre id=\"checks\" hidden=\"\">").expect("the checks did not run");
            let (report, _) = report.split_once("</pre>").unwrap();
            assert!(report.ends_with("\"wrong\":[]}"), "{name} at {width} pixels, {theme}: {report}");
            assert!(report.contains(&format!("\"width\":{width},\"dark\":{}", theme == "dark")), "{report}");
            let (most, count) = colours(&picture, width);
            assert!(most < 0.9 && count > 200, "{name}, {width}, {theme}: {most} {count}");
        }
    }
}
