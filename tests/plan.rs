//! From the units that should be there to the changes on disk.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::path::{Path, PathBuf};

use litellm_units::host::paths::{Paths, Scope};
use litellm_units::quadlet::plan::UnitPlan;
use litellm_units::quadlet::{MARKER, Place, UnitFile};

use crate::support::{cases, failure, tree};

/// An empty host's directories.
struct Root {
    directory: tempfile::TempDir,
    paths: Paths,
}

impl Root {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let paths = Paths {
            scope: Scope::System,
            deployment: at("deployment"),
            quadlets: at("etc/containers/systemd"),
            units: at("etc/systemd/system"),
            packaged_units: at("usr"),
            storage: at("storage"),
            runtime: at("run"),
            configuration: at("etc"),
        };
        Self { directory, paths }
    }

    fn quadlet(&self, name: &str) -> PathBuf {
        self.paths.quadlets.join(name)
    }

    fn plan(&self, wanted: &[UnitFile]) -> UnitPlan {
        UnitPlan::new(&self.paths, wanted).unwrap()
    }

    /// Paths without the temporary directory in front.
    fn relative(&self, text: &str) -> String {
        text.replace(&format!("{}/", self.directory.path().display()), "")
    }

    fn verbs(&self, plan: &UnitPlan) -> Vec<String> {
        let line = |change: &litellm_units::quadlet::plan::UnitChange| {
            self.relative(&format!("{} {}", change.verb(), change.path.display()))
        };
        plan.changes.iter().map(line).collect()
    }

    fn tree(&self) -> String {
        tree(self.directory.path())
    }
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn unit(place: Place, name: &'static str, body: &str) -> UnitFile {
    UnitFile {
        place,
        name,
        text: format!("{MARKER}\n{body}\n"),
    }
}

/// The units of a usual deployment.
fn usual() -> Vec<UnitFile> {
    cases::all().first().unwrap().units()
}

#[test]
fn an_empty_host_gets_everything_the_gateway_last_and_only_once() {
    let root = Root::new();
    let plan = root.plan(&usual());
    assert_eq!(
        root.verbs(&plan),
        [
            "create etc/systemd/system/litellm.target",
            "create etc/containers/systemd/litellm.network",
            "create etc/systemd/system/litellm-images@.service",
            "create etc/systemd/system/litellm.socket",
            "create etc/systemd/system/litellm-recovery.service",
            "create etc/systemd/system/litellm-backup.service",
            "create etc/systemd/system/litellm-backup.timer",
            "create etc/systemd/system/litellm-verify.service",
            "create etc/systemd/system/litellm-verify.timer",
            "create etc/systemd/system/litellm-upgrade-check.service",
            "create etc/systemd/system/litellm-upgrade-check.timer",
            "create etc/systemd/system/litellm-recycle.service",
            "create etc/systemd/system/litellm-recycle.timer",
            "create etc/containers/systemd/litellm-postgres.container",
            "create etc/containers/systemd/litellm-redis.container",
            "create etc/containers/systemd/litellm-migrate.container",
            "create etc/containers/systemd/litellm-standby.container",
            "create etc/containers/systemd/litellm.container",
        ]
    );
    assert_eq!(root.tree(), "", "planning alone writes nothing");
    plan.apply().unwrap();
    for file in usual() {
        let directory = match file.place {
            Place::Quadlet => &root.paths.quadlets,
            Place::Unit => &root.paths.units,
        };
        assert_eq!(
            fs::read_to_string(directory.join(file.name)).unwrap(),
            file.text
        );
    }
    let before = root.tree();
    assert_eq!(root.plan(&usual()), UnitPlan::default());
    plan.apply().unwrap();
    assert_eq!(root.plan(&usual()), UnitPlan::default());
    // Applied again, the same plan gives the same names, modes and contents.
    let without_inodes = |tree: &str| {
        let words = |line: &str| {
            line.split(' ')
                .enumerate()
                .filter(|(at, _)| *at != 1)
                .map(|(_, word)| word.to_owned())
                .collect::<Vec<_>>()
        };
        tree.lines().map(words).collect::<Vec<_>>()
    };
    assert_eq!(without_inodes(&root.tree()), without_inodes(&before));
}

#[test]
fn only_what_differs_is_written() {
    let root = Root::new();
    root.plan(&usual()).apply().unwrap();
    let gateway = root.quadlet("litellm.container");
    let text = fs::read_to_string(&gateway).unwrap();
    write(&gateway, &text.replace("Pull=never", "Pull=always"));
    fs::remove_file(root.quadlet("litellm.network")).unwrap();
    let kept = fs::metadata(root.quadlet("litellm-redis.container")).unwrap();
    let plan = root.plan(&usual());
    assert_eq!(
        root.verbs(&plan),
        [
            "create etc/containers/systemd/litellm.network",
            "update etc/containers/systemd/litellm.container"
        ]
    );
    plan.apply().unwrap();
    assert_eq!(fs::read_to_string(&gateway).unwrap(), text);
    let redis = fs::metadata(root.quadlet("litellm-redis.container")).unwrap();
    assert_eq!(redis.modified().unwrap(), kept.modified().unwrap());
}

#[test]
fn the_difference_is_a_unified_diff() {
    let root = Root::new();
    write(
        &root.quadlet("litellm-old.container"),
        &format!("{MARKER}\n[Container]\n"),
    );
    write(
        &root.quadlet("litellm.container"),
        &format!("{MARKER}\n[Container]\nPull=always\nImage=a\n"),
    );
    let wanted = [
        unit(Place::Quadlet, "litellm.network", "[Network]"),
        unit(
            Place::Quadlet,
            "litellm.container",
            "[Container]\nPull=never\nImage=a",
        ),
    ];
    assert_eq!(
        root.relative(&root.plan(&wanted).diff()),
        format!(
            "\
--- etc/containers/systemd/litellm-old.container
+++ /dev/null
@@ -1,2 +0,0 @@
-{MARKER}
-[Container]
--- /dev/null
+++ etc/containers/systemd/litellm.network
@@ -0,0 +1,2 @@
+{MARKER}
+[Network]
--- etc/containers/systemd/litellm.container
+++ etc/containers/systemd/litellm.container
@@ -1,4 +1,4 @@
 {MARKER}
 [Container]
-Pull=always
+Pull=never
 Image=a
"
        )
    );
    assert_eq!(root.plan(&[]).diff().matches("+++ /dev/null").count(), 2);
}

#[test]
fn a_further_gateway_is_a_line_of_the_summary() {
    let root = Root::new();
    let text = "[Container]\nImage=a";
    for name in ["litellm.container", "litellm-3.container"] {
        write(&root.quadlet(name), &format!("{MARKER}\n{text}\n"));
    }
    let wanted = [
        unit(Place::Quadlet, "litellm.container", text),
        unit(Place::Quadlet, "litellm-2.container", text),
    ];
    let plan = root.plan(&wanted);
    // What is applied as a patch is complete.
    assert_eq!(plan.diff().matches("\n@@ ").count(), 2);
    assert_eq!(
        root.relative(&plan.summary()),
        "# remove etc/containers/systemd/litellm-3.container, another instance of litellm.container\n\
         # create etc/containers/systemd/litellm-2.container, another instance of litellm.container\n"
    );
}

#[test]
fn obsolete_files_of_ours_are_removed_and_others_stay() {
    let root = Root::new();
    let ours = format!("{MARKER}\n");
    write(&root.quadlet("litellm-postgres.container"), &ours);
    write(&root.paths.units.join("litellm-old.service"), &ours);
    // Theirs, by its text, by its name or by its kind.
    write(&root.quadlet("litellm-mine.container"), "[Container]\n");
    write(&root.quadlet("other.container"), &ours);
    write(&root.quadlet("litellm-postgres.container.d/10.conf"), &ours);
    write(&root.quadlet("litellm.volume"), &ours);
    write(&root.paths.units.join("litellm.conf"), &ours);
    write(&root.paths.units.join("litellmd.service"), &ours);
    std::os::unix::fs::symlink("/dev/null", root.paths.units.join("litellm-x.service")).unwrap();
    let plan = root.plan(&[]);
    assert_eq!(
        root.verbs(&plan),
        [
            "remove etc/containers/systemd/litellm-postgres.container",
            "remove etc/systemd/system/litellm-old.service"
        ]
    );
    plan.apply().unwrap();
    let names: Vec<String> = root
        .tree()
        .lines()
        .filter_map(|line| Some(line.split_once(" etc/")?.1.to_owned()))
        .collect();
    assert_eq!(
        names,
        [
            "containers",
            "containers/systemd",
            "containers/systemd/litellm-mine.container",
            "containers/systemd/litellm-postgres.container.d",
            "containers/systemd/litellm-postgres.container.d/10.conf",
            "containers/systemd/litellm.volume",
            "containers/systemd/other.container",
            "systemd",
            "systemd/system",
            "systemd/system/litellm-x.service -> /dev/null",
            "systemd/system/litellm.conf",
            "systemd/system/litellmd.service",
        ]
    );
    assert_eq!(root.plan(&[]), UnitPlan::default());
}

#[test]
fn a_foreign_file_in_the_way_is_refused() {
    type Put = fn(&Path);
    let ways: [Put; 5] = [
        |path| fs::write(path, "[Container]\nImage=theirs\n").unwrap(),
        |path| fs::write(path, "").unwrap(),
        |path| fs::write(path, b"\xff\xfe").unwrap(),
        |path| std::os::unix::fs::symlink("/dev/null", path).unwrap(),
        |path| fs::create_dir(path).unwrap(),
    ];
    for put in ways {
        let root = Root::new();
        fs::create_dir_all(&root.paths.quadlets).unwrap();
        put(&root.quadlet("litellm-redis.container"));
        let before = root.tree();
        let error = UnitPlan::new(&root.paths, &usual()).unwrap_err();
        assert_eq!(
            root.relative(&failure(&error)),
            "error: etc/containers/systemd/litellm-redis.container was not written by litellm-units, so it is not replaced\n\
             hint: move it away, then run the same command again\n"
        );
        assert_eq!(root.tree(), before);
    }
}

/// After each possible interruption, the next run completes what the first began.
#[test]
fn an_interrupted_installation_is_completed() {
    let steps = Root::new().plan(&usual()).changes.len();
    for done in 0..=steps {
        let root = Root::new();
        let mut first = root.plan(&usual());
        first.changes.truncate(done);
        first.apply().unwrap();
        // What a killed writer leaves beside its goal is neither ours nor in the way.
        write(&root.quadlet(".litellm-units-x1y2z3"), "half a fi");
        let second = root.plan(&usual());
        assert_eq!(second.changes.len(), steps - done);
        second.apply().unwrap();
        assert_eq!(root.plan(&usual()), UnitPlan::default());
    }
}

#[test]
fn a_directory_that_can_not_be_read_is_named() {
    let root = Root::new();
    write(
        &root.directory.path().join("etc/containers"),
        "in the way\n",
    );
    let error = UnitPlan::new(&root.paths, &usual()).unwrap_err();
    assert_eq!(
        root.relative(&failure(&error)),
        "error: can't read etc/containers/systemd: Not a directory (os error 20)\n"
    );
}
