//! What etcd tells about itself by plain HTTP.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::LIMIT;

/// Longest answer that is read, in bytes.
const MOST: u64 = 4 << 20;

/// The body of a page; none if there is no such page, or nobody answers in time.
pub(super) async fn page(authority: &str, path: &str) -> Option<String> {
    let read = async {
        let mut stream = TcpStream::connect(authority).await.ok()?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: {authority}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        stream.take(MOST).read_to_end(&mut answer).await.ok()?;
        let answer = String::from_utf8(answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?;
        (status == "200").then(|| body.to_owned())
    };
    timeout(LIMIT, read).await.ok()?
}

/// Value of a metric without labels.
pub(super) fn metric(page: &str, name: &str) -> Option<f64> {
    let mut values = page.lines().filter_map(|line| line.strip_prefix(name));
    values.find_map(|rest| rest.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::metric;

    #[test]
    fn a_metric_is_the_one_with_exactly_this_name() {
        let page = "# TYPE quota gauge\nquota_more 1\nquota 2.147483648e+09\n";
        assert_eq!(metric(page, "quota"), Some(2_147_483_648.0));
        assert_eq!(metric(page, "other"), None);
    }
}
