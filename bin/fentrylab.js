#!/usr/bin/env node
// The installed command. A file of its own, because what the compiler writes is not executable.

import "../dist/src/cli/main.js";
