//! Files in relation to each other: manifests, and modules nobody declares.

use super::mask::words;
use super::{File, Finding};

/// Rules for the manifest of a member: versions stand in the root, no features, no build script.
pub(super) fn check_manifest(file: &File) -> Vec<Finding> {
    let mut found = Vec::new();
    if file.path.ends_with("/build.rs") {
        found.push(Finding::new(file, 0, "no build scripts: generate with xtask and commit"));
    }
    if !file.path.ends_with("/Cargo.toml") {
        return found;
    }
    let mut section = "";
    for (index, line) in file.text.lines().enumerate() {
        let line = line.trim();
        if line.starts_with('[') {
            section = line;
        } else if section.contains("dependencies")
            && !section.starts_with("[workspace")
            && line.contains('=')
            && !line.contains("workspace = true")
        {
            found.push(Finding::new(file, index + 1, "versions stand in the root manifest: `workspace = true`"));
        }
        if line == "[features]" {
            found.push(Finding::new(file, index + 1, "no cargo features: variation is data"));
        }
    }
    if !file.text.contains("[lints]\nworkspace = true\n") {
        found.push(Finding::new(file, 0, "take the lint table of the workspace"));
    }
    found
}

/// Every module file is declared by the file above it.
pub(super) fn check_dead_files(files: &[File]) -> Vec<Finding> {
    let mut found = Vec::new();
    for file in files.iter().filter(|file| file.is_rust() && file.path.contains("src/")) {
        let Some((folder, name)) = file.path.rsplit_once('/') else { continue };
        let root = ["lib.rs", "main.rs"].contains(&name) || folder.ends_with("/bin");
        if root {
            continue;
        }
        // A folder's own module is declared one level up, under the folder's name.
        let (folder, module) = match name {
            "mod.rs" => folder.rsplit_once('/').unwrap_or(("", folder)),
            _ => (folder, name.trim_end_matches(".rs")),
        };
        let parents = [
            format!("{folder}/lib.rs"),
            format!("{folder}/main.rs"),
            format!("{folder}/mod.rs"),
            format!("{folder}.rs"),
        ];
        let declares = |parent: &&File| {
            let below_binary = folder.ends_with("/bin") || parent.path.starts_with(&format!("{folder}/bin/"));
            (parents.contains(&parent.path) || below_binary) && declares(&parent.code, module)
        };
        if !files.iter().any(|parent| declares(&parent)) {
            found.push(Finding::new(file, 0, "no module declares this file"));
        }
    }
    found
}

fn declares(code: &str, module: &str) -> bool {
    words(code, module).any(|at| code[..at].ends_with("mod ") && code[at + module.len()..].starts_with(';'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests() {
        let lines = |text: &str| {
            check_manifest(&File::new("engine/Cargo.toml", text)).iter().map(|f| f.line).collect::<Vec<_>>()
        };
        let lints = "[lints]\nworkspace = true\n";
        assert_eq!(lines(&format!("{lints}[dependencies]\na.workspace = true\nb = {{ workspace = true }}\n")), [0; 0]);
        assert_eq!(lines(&format!("{lints}[dependencies]\na = \"1\"\n")), [4]);
        assert_eq!(lines(&format!("{lints}[dev-dependencies]\na = {{ path = \"b\" }}\n")), [4]);
        assert_eq!(lines(&format!("{lints}[workspace.dependencies]\na = \"1\"\n")), [0; 0]);
        assert_eq!(lines(&format!("{lints}[features]\n")), [3]);
        assert_eq!(lines("[dependencies]\n"), [0]);
        assert_eq!(check_manifest(&File::new("engine/build.rs", "")).len(), 1);
    }

    #[test]
    fn dead_files() {
        let file = |path: &str, text: &str| File::new(path, text);
        let files = [
            file("a/src/lib.rs", "mod alive;\nmod folder;\n// mod dead;\nmod inline {}\n"),
            file("a/src/alive.rs", "pub mod below;\n"),
            file("a/src/alive/below.rs", ""),
            file("a/src/dead.rs", ""),
            file("a/src/folder/mod.rs", "pub(crate) mod part;\n"),
            file("a/src/folder/part.rs", ""),
            file("a/src/folder/dead.rs", ""),
            file("a/src/inline.rs", ""),
            file("a/src/bin/tool.rs", ""),
            file("a/tests/case.rs", ""),
        ];
        let dead: Vec<_> = check_dead_files(&files).into_iter().map(|finding| finding.path).collect();
        assert_eq!(dead, ["a/src/dead.rs", "a/src/folder/dead.rs", "a/src/inline.rs"]);
    }
}
