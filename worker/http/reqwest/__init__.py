"""The engine over pyreqwest: reqwest, hyper and rustls, on a thread of their own."""
