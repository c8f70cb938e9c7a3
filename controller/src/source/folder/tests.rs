//! Faults of files: what was in force stays, what is deleted goes, and each finding names its file.

use std::os::unix::fs::symlink;

use bulkhead_policy::model::Event;
use tempfile::TempDir;

use super::*;

fn policy(name: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{podSelector: {{}}, policyTypes: [Ingress]}}\n"
    )
}

fn namespace(name: &str, team: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{team: {team}}}}}\n")
}

struct Fixture {
    directory: TempDir,
    folder: Folder,
}

impl Fixture {
    fn new(files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let folder = Folder::new(directory.path());
        let fixture = Self { directory, folder };
        for (name, text) in files {
            fixture.write(name, text);
        }
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn batch(&mut self) -> Batch {
        self.folder.scan().expect("something changed")
    }

    /// `+Kind name` and `-Kind name`, in order.
    fn changes(&mut self) -> Vec<String> {
        told(&self.batch())
    }
}

fn told(batch: &Batch) -> Vec<String> {
    let text = |event: &Event| match event {
        Event::Upsert(object) => format!("+{}", object_text(&object.key())),
        Event::Delete(key) => format!("-{}", object_text(key)),
        Event::Resync(_) => "resync".to_owned(),
    };
    batch.events.iter().map(text).collect()
}

fn findings(batch: &Batch) -> String {
    batch
        .diagnostics
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn files_come_change_and_go() {
    let mut fixture = Fixture::new(&[
        ("a.yaml", &policy("one")),
        ("notes.txt", "not ours"),
        (".a.yaml.swp", "x: ["),
    ]);
    assert_eq!(fixture.changes(), ["+NetworkPolicy shop/one"]);
    assert!(fixture.folder.scan().is_none(), "nothing changed");
    fs::create_dir(fixture.path("deep")).unwrap();
    fixture.write(
        "deep/b.json",
        r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}"#,
    );
    assert_eq!(fixture.changes(), ["+Namespace shop"]);
    fixture.write("a.yaml", &policy("two"));
    assert_eq!(
        fixture.changes(),
        ["-NetworkPolicy shop/one", "+NetworkPolicy shop/two"]
    );
    fs::remove_file(fixture.path("a.yaml")).unwrap();
    fs::remove_dir_all(fixture.path("deep")).unwrap();
    assert_eq!(fixture.changes(), ["-Namespace shop", "-NetworkPolicy shop/two"]);
}

#[test]
fn broken_yaml_after_good_keeps_what_was_said() {
    let good = format!("{}---\n{}", policy("one"), policy("two"));
    let mut fixture = Fixture::new(&[("a.yaml", &good), ("b.yaml", &namespace("shop", "red"))]);
    assert_eq!(fixture.changes().len(), 3);
    fixture.write("a.yaml", &format!("{}---\nkind: [\n", policy("one")));
    fixture.write("b.yaml", &namespace("shop", "blue"));
    let batch = fixture.batch();
    assert_eq!(
        told(&batch),
        ["+Namespace shop"],
        "the other file is applied, and no policy is deleted"
    );
    let findings = findings(&batch);
    assert!(findings.contains("error: a.yaml document 2"), "{findings}");
    assert!(
        findings.contains("NetworkPolicy shop/two") && findings.contains("stays in force"),
        "{findings}"
    );
    assert_eq!(batch.unknown, Vec::<String>::new(), "what it said is known");
    fixture.write("a.yaml", &policy("one"));
    let batch = fixture.batch();
    assert_eq!(
        told(&batch),
        ["-NetworkPolicy shop/two"],
        "once it can be read, what is not there is gone"
    );
    assert!(batch.diagnostics.is_empty(), "{:?}", batch.diagnostics);
}

#[test]
fn a_file_that_was_never_readable_is_unknown_until_it_is() {
    let mut fixture = Fixture::new(&[("a.yaml", "kind: ["), ("b.yaml", &namespace("shop", "red"))]);
    let batch = fixture.batch();
    assert_eq!(told(&batch), ["+Namespace shop"]);
    assert_eq!(batch.unknown, ["a.yaml"]);
    fixture.write("a.yaml", &policy("one"));
    assert_eq!(fixture.batch().unknown, Vec::<String>::new());
}

#[test]
fn renaming_over_a_file_changes_it() {
    let mut fixture = Fixture::new(&[("a.yaml", &policy("one"))]);
    fixture.changes();
    fixture.write("a.yaml~new", &policy("two"));
    fs::rename(fixture.path("a.yaml~new"), fixture.path("a.yaml")).unwrap();
    assert_eq!(
        fixture.changes(),
        ["-NetworkPolicy shop/one", "+NetworkPolicy shop/two"]
    );
}

#[test]
fn a_config_maps_swap_changes_all_its_files_at_once() {
    let mut fixture = Fixture::new(&[]);
    for (version, name) in [("..v1", "one"), ("..v2", "two")] {
        fs::create_dir(fixture.path(version)).unwrap();
        fixture.write(&format!("{version}/a.yaml"), &policy(name));
    }
    symlink("..v1", fixture.path("..data")).unwrap();
    symlink("..data/a.yaml", fixture.path("a.yaml")).unwrap();
    assert_eq!(fixture.changes(), ["+NetworkPolicy shop/one"]);
    symlink("..v2", fixture.path("..data_tmp")).unwrap();
    fs::rename(fixture.path("..data_tmp"), fixture.path("..data")).unwrap();
    fs::remove_dir_all(fixture.path("..v1")).unwrap();
    assert_eq!(
        fixture.changes(),
        ["-NetworkPolicy shop/one", "+NetworkPolicy shop/two"]
    );
}

#[test]
fn a_file_that_becomes_unreadable_keeps_what_it_said() {
    let mut fixture = Fixture::new(&[("real", &policy("one"))]);
    symlink("real", fixture.path("a.yaml")).unwrap();
    assert_eq!(fixture.changes(), ["+NetworkPolicy shop/one"]);
    fs::rename(fixture.path("real"), fixture.path("away")).unwrap();
    let batch = fixture.batch();
    assert_eq!(told(&batch), Vec::<String>::new());
    assert!(
        findings(&batch).contains("error: a.yaml: file: cannot be read"),
        "{}",
        findings(&batch)
    );
    assert!(fixture.folder.scan().is_none(), "said once");
    fixture.write("real", &policy("one"));
    let batch = fixture.batch();
    assert!(batch.events.is_empty() && batch.diagnostics.is_empty(), "{batch:?}");
    fs::write(fixture.path("real"), [0xff, 0xfe]).unwrap();
    assert!(findings(&fixture.batch()).contains("not UTF-8"));
}

#[test]
fn a_folder_that_goes_away_takes_nothing_with_it() {
    let mut fixture = Fixture::new(&[("a.yaml", &policy("one"))]);
    fixture.changes();
    let away = fixture.directory.path().with_extension("away");
    fs::rename(fixture.directory.path(), &away).unwrap();
    let batch = fixture.batch();
    assert_eq!(told(&batch), Vec::<String>::new());
    assert!(findings(&batch).contains("stays in force"), "{}", findings(&batch));
    fs::rename(&away, fixture.directory.path()).unwrap();
    assert!(fixture.batch().diagnostics.is_empty());
}

#[test]
fn a_folder_that_was_never_there_gives_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("later");
    let mut folder = Folder::new(&path);
    assert!(folder.scan().is_none());
    fs::create_dir(&path).unwrap();
    let batch = folder.scan().expect("an empty folder is an answer");
    assert!(batch.events.is_empty());
}

#[test]
fn one_object_in_two_files_is_the_first_files() {
    let mut fixture = Fixture::new(&[
        ("b.yaml", &namespace("shop", "red")),
        ("c.yaml", &namespace("shop", "blue")),
    ]);
    let team = |batch: &Batch| match batch.events.as_slice() {
        [Event::Upsert(Object::Namespace(namespace))] => namespace.labels["team"].clone(),
        other => panic!("{other:?}"),
    };
    let batch = fixture.batch();
    assert_eq!(team(&batch), "red");
    assert!(
        findings(&batch).contains("warning: c.yaml: Namespace shop: is in b.yaml too"),
        "{}",
        findings(&batch)
    );
    fixture.write("a.yaml", &namespace("shop", "green"));
    let batch = fixture.batch();
    assert_eq!(team(&batch), "green");
    fs::remove_file(fixture.path("a.yaml")).unwrap();
    fs::remove_file(fixture.path("b.yaml")).unwrap();
    let batch = fixture.batch();
    assert_eq!(team(&batch), "blue", "never deleted in between");
    assert!(batch.diagnostics.is_empty());
}

#[test]
fn the_watch_sees_changes_without_being_asked() {
    let fixture = Fixture::new(&[("a.yaml", &policy("one"))]);
    let (sender, mut batches) = tokio::sync::mpsc::channel(1);
    let files = super::super::files::Files::new(fixture.directory.path());
    let watch = std::thread::spawn(move || files.run(&sender));
    assert_eq!(told(&batches.blocking_recv().unwrap()), ["+NetworkPolicy shop/one"]);
    fixture.write("b.yaml", &policy("two"));
    assert_eq!(told(&batches.blocking_recv().unwrap()), ["+NetworkPolicy shop/two"]);
    fs::remove_file(fixture.path("a.yaml")).unwrap();
    assert_eq!(told(&batches.blocking_recv().unwrap()), ["-NetworkPolicy shop/one"]);
    drop(batches);
    watch.join().unwrap();
}
