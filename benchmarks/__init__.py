"""Questions of speed and quality, each answered beside a stated baseline."""
