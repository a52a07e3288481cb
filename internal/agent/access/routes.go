package access

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	virtv1 "kubevirt.io/api/core/v1"
)

// Root is the path of a machine's resources.
const root = "/v1/namespaces/{namespace}/virtualmachineinstances/{name}/"

// resource is the kind as errors name it: in the singular, because clients compare the text.
var resource = schema.GroupResource{Group: "kubevirt.io", Resource: "virtualmachineinstance"}

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+root+"console", s.onMachine(s.console))
	mux.HandleFunc("GET "+root+"vnc", s.onMachine(s.screen))
	mux.HandleFunc("GET "+root+"portforward/{port}", s.onMachine(s.portForward))
	mux.HandleFunc("GET "+root+"portforward/{port}/{protocol}", s.onMachine(s.portForward))

	mux.HandleFunc("PUT "+root+"pause", s.onMachine(change(checkPause, Machine.Pause)))
	mux.HandleFunc("PUT "+root+"unpause", s.onMachine(change(checkUnpause, Machine.Unpause)))
	mux.HandleFunc("PUT "+root+"reset", s.onMachine(change(checkRunning, Machine.Reset)))
	mux.HandleFunc("PUT "+root+"softreboot", s.onMachine(change(checkSoftReboot, Machine.SoftReboot)))

	mux.HandleFunc("PUT "+root+"freeze", s.onMachine(freeze))
	mux.HandleFunc("PUT "+root+"unfreeze", s.onMachine(change(checkRunning, Machine.Unfreeze)))
	mux.HandleFunc("GET "+root+"screenshot", s.onMachine(screenshot))
	mux.HandleFunc("GET "+root+"migrationprogress", s.onMachine(tell(Machine.MigrationProgress)))
	mux.HandleFunc("GET "+root+"addresses", s.onMachine(tell(func(m Machine, _ context.Context) ([]AddressSources, error) { return m.Addresses() })))

	mux.HandleFunc("GET "+root+"guestosinfo", s.onMachine(describe(Machine.GuestInfo)))
	mux.HandleFunc("GET "+root+"userlist", s.onMachine(describe(Machine.Users)))
	mux.HandleFunc("GET "+root+"filesystemlist", s.onMachine(describe(Machine.Filesystems)))
	return mux
}

// onMachine finds the machine that a request names.
func (s *Server) onMachine(serve func(http.ResponseWriter, *http.Request, Machine)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		machine, err := s.Machines.Machine(r.PathValue("namespace"), r.PathValue("name"))
		if err != nil {
			refuse(w, err)
			return
		}
		serve(w, r, machine)
	}
}

// change carries out a request that changes a machine. With dryRun in the body it is only checked.
func change(check func(*virtv1.VirtualMachineInstance) error, do func(Machine, context.Context) error) func(http.ResponseWriter, *http.Request, Machine) {
	return func(w http.ResponseWriter, r *http.Request, m Machine) {
		dryRun, err := readDryRun(r)
		if err == nil {
			err = check(m.VMI())
		}
		if err == nil && !dryRun {
			err = do(m, r.Context())
		}
		if err != nil {
			refuse(w, err)
			return
		}
		w.WriteHeader(http.StatusOK)
	}
}

// freeze stops writes for a while, which the body may say.
func freeze(w http.ResponseWriter, r *http.Request, m Machine) {
	var options virtv1.FreezeUnfreezeTimeout
	err := json.NewDecoder(io.LimitReader(r.Body, bodyLimit)).Decode(&options)
	if err != nil && !errors.Is(err, io.EOF) {
		refuse(w, apierrors.NewBadRequest("the body is not a JSON object: "+err.Error()))
		return
	}
	var limit time.Duration
	if options.UnfreezeTimeout != nil {
		limit = options.UnfreezeTimeout.Duration
	}
	if err := checkRunning(m.VMI()); err != nil {
		refuse(w, err)
		return
	}
	if err := m.Freeze(r.Context(), limit); err != nil {
		refuse(w, err)
		return
	}
	w.WriteHeader(http.StatusOK)
}

func screenshot(w http.ResponseWriter, r *http.Request, m Machine) {
	err := checkScreen(m.VMI())
	var picture []byte
	if err == nil {
		picture, err = m.Screenshot(r.Context())
	}
	if err != nil {
		refuse(w, err)
		return
	}
	w.Header().Set("Content-Type", "image/png")
	_, _ = w.Write(picture) // the client has gone; nobody is left to tell
}

// tell answers what is known of a running machine.
func tell[T any](ask func(Machine, context.Context) (T, error)) func(http.ResponseWriter, *http.Request, Machine) {
	return func(w http.ResponseWriter, r *http.Request, m Machine) {
		err := checkRunning(m.VMI())
		var answer T
		if err == nil {
			answer, err = ask(m, r.Context())
		}
		if err != nil {
			refuse(w, err)
			return
		}
		writeJSON(w, http.StatusOK, answer)
	}
}

// bodyLimit is how large the options of a request may be, in bytes.
const bodyLimit = 1 << 16

func readDryRun(r *http.Request) (bool, error) {
	var options struct {
		DryRun []string `json:"dryRun"`
	}
	err := json.NewDecoder(io.LimitReader(r.Body, bodyLimit)).Decode(&options)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, apierrors.NewBadRequest("the body is not a JSON object: " + err.Error())
	}
	return slices.Contains(options.DryRun, metav1.DryRunAll), nil
}

// describe answers what the guest agent says. Errors are plain text with status 500, as clients of these three expect.
func describe[T any](ask func(Machine, context.Context) (T, error)) func(http.ResponseWriter, *http.Request, Machine) {
	return func(w http.ResponseWriter, r *http.Request, m Machine) {
		err := checkRunning(m.VMI())
		if err == nil && !has(m.VMI(), virtv1.VirtualMachineInstanceAgentConnected) {
			err = conflict(m.VMI(), "VMI does not have guest agent connected")
		}
		var answer T
		if err == nil {
			answer, err = ask(m, r.Context())
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		writeJSON(w, http.StatusOK, answer)
	}
}

func refuse(w http.ResponseWriter, err error) {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		status = apierrors.NewInternalError(err)
	}
	answer := status.Status()
	answer.TypeMeta = metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}
	code := int(answer.Code)
	if code == 0 {
		code = http.StatusInternalServerError
	}
	writeJSON(w, code, answer)
}

func writeJSON(w http.ResponseWriter, code int, value any) {
	body, err := json.Marshal(value)
	if err != nil {
		http.Error(w, fmt.Sprintf("write the answer: %v", err), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(body) // the client has gone; nobody is left to tell
}
