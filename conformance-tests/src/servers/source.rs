use std::{
    env,
    ffi::OsString,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use super::service::About;

/// Origin of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A server that runs already, at this URL.
    Url(String),
    /// This program.
    Program(PathBuf),
    /// A container of this Docker image.
    #[cfg(feature = "docker")]
    Image(String),
}

/// Finds the first source that this environment has, or says what is missing.
pub(super) fn source(about: &About, allows_url: bool) -> Result<Source, String> {
    source_in(about, allows_url, &from_environment, &image_source)
}

/// Finds a program: the one that the variable names, else the first on the path.
pub(super) fn program(variable: &str, name: &str) -> Result<Option<PathBuf>, String> {
    Ok(named_program(variable, &from_environment)?.or_else(|| on_path(name, &from_environment)))
}

type Variables<'a> = &'a dyn Fn(&str) -> Option<OsString>;

type Images<'a> = &'a dyn Fn(&About) -> Result<Source, String>;

fn from_environment(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

#[cfg(feature = "docker")]
fn image_source(about: &About) -> Result<Source, String> {
    super::docker::image(about.image_variable).map(Source::Image)
}

#[cfg(not(feature = "docker"))]
fn image_source(about: &About) -> Result<Source, String> {
    Err(format!(
        "Docker (and {}) is not tried without the feature `docker` of lock-conformance",
        about.image_variable
    ))
}

fn source_in(
    about: &About,
    allows_url: bool,
    variables: Variables<'_>,
    images: Images<'_>,
) -> Result<Source, String> {
    let url = variables(about.url_variable);
    if let Some(url) = url.as_ref().filter(|_| allows_url) {
        return Ok(Source::Url(url.to_string_lossy().into_owned()));
    }
    if let Some(program) = named_program(about.program_variable, variables)? {
        return Ok(Source::Program(program));
    }
    // An image that a variable names comes before a program that happens to be installed.
    if variables(about.image_variable).is_some() {
        return images(about);
    }
    if let Some(program) = on_path(about.program, variables) {
        return Ok(Source::Program(program));
    }
    let obstacle = match images(about) {
        Ok(image) => return Ok(image),
        Err(obstacle) => obstacle,
    };
    let own = if url.is_some() {
        "a server that the test can disturb is needed, and "
    } else {
        ""
    };
    let advice = format!(
        "install Debian's {} or set {}",
        about.package, about.program_variable
    );
    Err(format!(
        "{own}there is no {} on PATH; {obstacle}; {advice}",
        about.program
    ))
}

fn named_program(variable: &str, variables: Variables<'_>) -> Result<Option<PathBuf>, String> {
    let Some(path) = variables(variable).map(PathBuf::from) else {
        return Ok(None);
    };
    if is_program(&path) {
        Ok(Some(path))
    } else {
        Err(format!(
            "{variable} names {}, which is no program",
            path.display()
        ))
    }
}

fn on_path(name: &str, variables: Variables<'_>) -> Option<PathBuf> {
    let path = variables("PATH")?;
    env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|program| is_program(program))
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    static ABOUT: About = About {
        name: "x",
        url_variable: "X_URL",
        program: "x-server",
        program_variable: "X_BIN",
        image_variable: "X_IMAGE",
        package: "x-package",
    };

    fn look(variables: &[(&str, &str)], allows_url: bool) -> Result<Source, String> {
        let variable = |name: &str| {
            variables
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| OsString::from(value))
        };
        source_in(&ABOUT, allows_url, &variable, &|_| {
            Err("no Docker".to_owned())
        })
    }

    fn directory_with_program() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("x-server");
        fs::write(&program, "").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(directory.path().join("no-program"), "").unwrap();
        directory
    }

    #[test]
    fn prefers_a_running_server_to_a_named_program_to_one_on_the_path() {
        let directory = directory_with_program();
        let path = directory.path().to_str().unwrap();
        let program = directory.path().join("x-server");
        let named = program.to_str().unwrap();
        let all = [("X_URL", "x://h:1"), ("X_BIN", named), ("PATH", path)];
        assert_eq!(look(&all, true), Ok(Source::Url("x://h:1".to_owned())));
        assert_eq!(look(&all, false), Ok(Source::Program(program.clone())));
        assert_eq!(look(&all[1..2], true), Ok(Source::Program(program.clone())));
        let path = format!("/nowhere:{path}");
        assert_eq!(look(&[("PATH", &path)], true), Ok(Source::Program(program)));
    }

    #[test]
    fn prefers_a_named_image_to_a_program_that_happens_to_be_there() {
        let directory = directory_with_program();
        let program = directory.path().join("x-server");
        let all = [
            ("X_BIN", program.to_str().unwrap()),
            ("X_IMAGE", "x:1"),
            ("PATH", directory.path().to_str().unwrap()),
        ];
        assert_eq!(look(&all, true), Ok(Source::Program(program.clone())));
        assert_eq!(
            look(&all[1..], true),
            Err("no Docker".to_owned()),
            "the program on the path was not meant"
        );
    }

    #[test]
    fn says_what_is_missing() {
        let reason = look(&[("PATH", "/nowhere")], true).unwrap_err();
        for part in ["no x-server on PATH", "no Docker", "x-package", "X_BIN"] {
            assert!(reason.contains(part), "{reason}");
        }
        let reason = look(&[("X_URL", "x://h:1")], false).unwrap_err();
        assert!(
            reason.contains("a server that the test can disturb"),
            "{reason}"
        );
    }

    #[test]
    fn refuses_a_named_program_that_is_none() {
        let directory = directory_with_program();
        for name in ["no-program", "absent", "."] {
            let named = directory.path().join(name);
            let reason = look(&[("X_BIN", named.to_str().unwrap())], true).unwrap_err();
            assert!(
                reason.contains("X_BIN") && reason.contains(name),
                "{reason}"
            );
        }
    }
}
