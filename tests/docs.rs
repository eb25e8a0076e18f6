//! The snippets of pages in docs/ are parts of programs that are compiled and run.

use std::path::Path;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The lines of a program or snippet, without their indentation, so that a snippet may be shown
/// further left than it stands.
fn lines(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).collect()
}

/// The fenced blocks of a language.
fn snippets<'a>(page: &'a str, language: &str) -> Vec<Vec<&'a str>> {
    let fence = format!("```{language}\n");
    let blocks = page.split(fence.as_str()).skip(1);
    blocks
        .map(|b| lines(b.split("```").next().expect("fences are closed")))
        .collect()
}

/// Every snippet of a page is part of one of its language's programs.
fn check(path: &str, programs: &[(&str, &[&str], usize)]) {
    let page = read(path);
    for &(language, programs, at_least) in programs {
        let sources: Vec<String> = programs.iter().map(|p| read(p)).collect();
        let sources: Vec<Vec<&str>> = sources.iter().map(|s| lines(s)).collect();
        let snippets = snippets(&page, language);
        assert!(
            snippets.len() >= at_least,
            "{} of {language}",
            snippets.len()
        );
        for snippet in snippets {
            let is_in = |s: &Vec<&str>| s.windows(snippet.len()).any(|w| w == snippet);
            assert!(
                sources.iter().any(is_in),
                "{programs:?}: none contains this snippet of {path}:\n{}",
                snippet.join("\n")
            );
        }
    }
}

#[test]
fn snippets_of_the_c_page_are_compiled() {
    check(
        "docs/c-api.md",
        &[
            ("c", &["tests/c/tour.c"], 8),
            ("cpp", &["tests/cpp/tour.cpp"], 6),
        ],
    );
}

#[test]
fn snippets_of_the_queue_page_are_compiled() {
    check("docs/queue.md", &[("c", &["tests/c/queue_tour.c"], 6)]);
}

#[test]
fn snippets_of_the_connector_page_are_compiled() {
    check(
        "docs/connector.md",
        &[
            (
                "c",
                &["tests/c/scheduler_tour.c", "tests/c/worker_tour.c"],
                14,
            ),
            (
                "cpp",
                &[
                    "examples/cpp/engines/engine.cpp",
                    "examples/cpp/engines/rank.hpp",
                ],
                7,
            ),
        ],
    );
}
