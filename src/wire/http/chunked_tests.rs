//! Tables for the chunked decoder.

use super::*;

fn decode(input: &[u8]) -> Result<Vec<u8>, Problem> {
    let mut body = Vec::new();
    let (taken, done) = ChunkedDecoder::default().decode(input, &mut body, 1000)?;
    assert!(done, "incomplete: {:?}", String::from_utf8_lossy(input));
    assert_eq!(taken, input.len());
    Ok(body)
}

#[test]
fn chunked_bodies_are_decoded_at_every_split() {
    let input = b"3\r\nabc\r\n0A;ext=\"v\";x\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n";
    assert_eq!(decode(input).unwrap(), b"abc0123456789");
    for cut in 0..input.len() {
        let (mut decoder, mut body) = (ChunkedDecoder::default(), Vec::new());
        let (taken, done) = decoder.decode(&input[..cut], &mut body, 1000).unwrap();
        assert!(!done, "at {cut}");
        let (rest, done) = decoder.decode(&input[taken..], &mut body, 1000).unwrap();
        assert!(done && taken + rest == input.len(), "at {cut}");
        assert_eq!(body, b"abc0123456789", "at {cut}");
    }
}

#[test]
fn legal_extensions_and_trailers_are_ignored() {
    for line in ["", ";a", ";a;b", " ;\ta", ";a=b", "; a = b ; c", ";a=\"\"", ";a=\"b;\\\" \u{e9}\"", ";a=\"x\";b"] {
        for trailer in ["", "A: b\r\n", "A:\r\nB: \u{e9}\tc \r\n"] {
            let input = format!("3{line}\r\nabc\r\n00{line}\r\n{trailer}\r\n");
            assert_eq!(decode(input.as_bytes()).as_deref(), Ok(&b"abc"[..]), "{input:?}");
        }
    }
}

#[test]
fn malformed_chunks_are_refused() {
    let long_extension = [b"1;".as_slice(), &vec![b'x'; limits::CHUNK_LINE_BYTES_MAX]].concat();
    let long_trailer = [b"0\r\n".as_slice(), b"T: ", &vec![b'x'; limits::TRAILER_BYTES_MAX]].concat();
    for input in [
        b"\r\nabc\r\n0\r\n\r\n".as_slice(),
        b"x\r\n",
        b"-3\r\nabc\r\n",
        b"+3\r\nabc\r\n",
        b"0x3\r\nabc\r\n",
        b" 3\r\nabc\r\n",
        b"3 abc\r\n",
        b"3\nabc\r\n",
        b"3\rabc",
        b"3\r\nabcX\r\n",
        b"3\r\nabc\n",
        b"3;a\x01\r\nabc\r\n",
        b"3;\r\nabc\r\n",
        b"3;;\r\nabc\r\n",
        b"3 \r\nabc\r\n",
        b"3;a \r\nabc\r\n",
        b"3;a=\r\nabc\r\n",
        b"3;=b\r\nabc\r\n",
        b"3;a=b c\r\nabc\r\n",
        b"3;a=\"b\r\nabc\r\n",
        b"3;a=\"b\\\"\r\nabc\r\n",
        b"3;a=\"b\"c\r\nabc\r\n",
        b"3;a\xff\r\nabc\r\n",
        b"3,a\r\nabc\r\n",
        b"3#a\r\nabc\r\n",
        b"3\x0b\r\nabc\r\n",
        b"3\0\r\nabc\r\n",
        b"3\r\r\nabc\r\n",
        b"1000000000000000\r\n",
        b"0\r\nbad trailer\r\n\r\n",
        b"0\r\n: x\r\n\r\n",
        b"0\r\nContent-Length: 3\r\n\r\n",
        b"0\r\nA: b\r\ntransfer-encoding: chunked\r\n\r\n",
        b"0\r\nContent_Length: 3\r\n\r\n",
        b"0\r\nA: \x01\r\n\r\n",
        b"0\r\nGET / HTTP/1.1\r\n\r\n",
        &long_extension,
        &long_trailer,
    ] {
        let mut body = Vec::new();
        let refused =
            ChunkedDecoder::default().decode(input, &mut body, 1000).expect_err(&String::from_utf8_lossy(input));
        assert_eq!(refused.row().status, 400, "{:?}", String::from_utf8_lossy(input));
    }
    let mut body = Vec::new();
    let refused = ChunkedDecoder::default().decode(b"3E9\r\n", &mut body, 1000);
    assert_eq!(refused, Err(Problem::PayloadTooLarge(1000)));
}
