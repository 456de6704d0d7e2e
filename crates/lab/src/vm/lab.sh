# What a script may call.

# Tells the host something, waits for its answer, and prints that.
host() {
    echo "ask $*" >&9
    IFS= read -r answer <&9 || exit 125
    echo "$answer"
}
