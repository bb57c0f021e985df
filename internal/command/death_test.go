package command

import (
	"bufio"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A tool does not outlive the process that runs it, even when that is killed.
func TestToolDiesWithItsCaller(t *testing.T) {
	if os.Getenv("COMMAND_TEST_CALLER") != "" {
		_, err := Command{Name: "sh", Args: []string{"-c", "echo $$; exec sleep 1000"}, Stdout: os.Stdout}.Run(t.Context())
		t.Fatal("the tool ended:", err)
	}
	caller := exec.Command(os.Args[0], "-test.run", "^TestToolDiesWithItsCaller$")
	caller.Env = append(os.Environ(), "COMMAND_TEST_CALLER=1")
	out, err := caller.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := caller.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	pid, convErr := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || convErr != nil {
		t.Fatalf("no pid: %q, %v", line, err)
	}
	_ = caller.Process.Kill()
	_ = caller.Wait()
	for deadline := time.Now().Add(5 * time.Second); alive(pid); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			t.Fatalf("process %d has outlived its caller", pid)
		}
	}
}

// alive says whether a process runs; a zombie that nobody has waited for does not.
func alive(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && !strings.Contains(string(stat), ") Z ")
}
