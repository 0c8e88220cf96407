"""`penstock bench`: load on any HTTP server, and a report. A client; it reads what a server shows, and no more."""
